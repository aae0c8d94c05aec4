"""A gang of a thousand, the most that a job may have: all goes as with two, and its status fits into the API server."""

import json

import pytest

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod, CreateService, DeletePod
from tests.unit.control.build import Scene, node, reclaim, spec

RANKS = 1000
MOST_BYTES = 1_000_000
"""etcd takes objects of 1.5 MiB; the job's spec and what the API server notes of the writers come on top."""


class Thousand(Scene):
    """Each rank has a node of its own, whose name ends with its number; no other node is there."""

    def __init__(self, begin: str = "a") -> None:
        super().__init__(spec(RANKS, pools=["a"]))
        self.begin = begin
        self.nodes = {name: node(name) for name in map(self.free_node, range(RANKS))}
        self.agents = set(self.nodes)

    def free_node(self, index: int) -> str:
        return f"{self.begin}{index:04}"

    def stopped(self) -> list[DeletePod]:
        """What is deleted as the attempt is stopped; then all have ended as told."""
        made = [each for each in self.step() if isinstance(each, DeletePod)]
        for index in range(RANKS):
            self.exit(143, index)
        return made


def test_all_are_made_once_and_run_as_one() -> None:
    scene = Thousand()
    made = scene.step()
    assert [each for each in made if isinstance(each, CreateService)] == [CreateService()]
    assert [each.index for each in made if isinstance(each, CreatePod)] == list(range(RANKS))
    last = manifests.pod(scene.job, 1, RANKS - 1, scene.pools["a"], scene.current)
    told = {each["name"]: each["value"] for each in last["spec"]["containers"][0]["env"]}
    assert (last["metadata"]["name"], told["RANK"], told["WORLD_SIZE"]) == ("job-1-999", "999", "1000")
    scene.started()
    assert (scene.status.ready, len(scene.current.nodes)) == ("1000/1000", RANKS)


def test_one_node_of_a_thousand_is_reclaimed() -> None:
    scene = Thousand()
    scene.started().mark("a0500", reclaim(60))
    deleted = scene.stopped()
    assert {each.name for each in deleted} == {f"job-1-{index}" for index in range(RANKS)}
    assert len(deleted) == RANKS
    scene.mark("a0500", None)
    scene.run()
    assert (scene.counts, scene.current.attempt) == ((1, 0), 2)
    assert scene.status.timeline[0].node == "a0500"
    assert len([each for each in scene.pods.values() if each.attempt == 2]) == RANKS


def test_a_rack_of_them_dies_silently_and_the_others_of_it() -> None:
    """Nothing is judged before the Leases tell; then it is one disruption."""
    scene = Thousand()
    scene.started()
    silent = list(scene.nodes)[:20]
    for index in range(len(silent), RANKS):
        scene.exit(1, index)
    scene.leases = {name: scene.now + 1 for name in scene.nodes if name not in silent}
    scene.run(5)
    assert (scene.stop.cls, scene.counts) == (None, (0, 0))
    for name in silent:
        scene.on_node(name, ready=False, ready_since=scene.now)
    scene.run(1)
    assert (scene.stop.cls, scene.stop.cause) == ("Disruption", "NodeLost")


def test_its_status_fits_into_the_api_server() -> None:
    scene = Thousand("n" * 248)
    scene.started().mark(scene.free_node(0), reclaim(60))
    scene.stopped()
    scene.mark(scene.free_node(0), None)
    scene.run(3600)
    scene.started()
    assert (scene.current.attempt, len(scene.current.nodes)) == (2, RANKS)
    size = len(json.dumps(scene.status.to_json()))
    assert size < MOST_BYTES, f"{size} bytes"


def test_more_are_refused() -> None:
    with pytest.raises(ValueError, match="replicas"):
        SpotTrainingJobSpec.model_validate(spec(1).to_json() | {"replicas": RANKS + 1})
