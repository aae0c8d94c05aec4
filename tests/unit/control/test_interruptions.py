"""What counts as an interruption of a pool: each notice and each machine that went without one, once."""

import dataclasses
from typing import Any, cast

import pytest

from spot_training.api.times import format_time
from spot_training.cluster.client import Client
from spot_training.control.cache import Cache
from spot_training.control.pools import PoolReporter
from spot_training.control.world import Exit, Pool
from tests.unit.control.build import NOW, Scene, node, pool, reclaim, spec
from tests.unit.control.objects import Json, merged, raw_job, raw_node
from tests.unit.control.test_pools import look, taken

PROVEN = pool("a", nodeDeletionMeansGone=True)


def counted(made: Pool) -> int:
    assert made.status.interruptions.last_hour == made.status.interruptions.last_day
    return made.status.interruptions.last_hour


def test_a_notice_that_is_withdrawn_and_comes_again_is_the_same() -> None:
    made = look(pool("a"), taken("a1"))
    for after, members in (
        (10, [node("a1")]),
        (20, [taken("a1")]),
        (30, [node("a1")]),
        (7000, [taken("a1")]),
    ):
        made = look(made, *members, now=NOW + after)
    assert made.status.interruptions.last_day == 1
    made = look(made, node("a1"), now=NOW + 7100)
    made = look(made, node("a1"), now=NOW + 7100 + 26 * 3600)
    assert made.status.interruptions.past == [], "what is remembered is bounded by a day"
    later = taken("a1", noticed_at=NOW + 7200 + 26 * 3600)
    assert look(made, later, now=NOW + 7200 + 26 * 3600).status.interruptions.last_hour == 1


def test_a_machine_that_was_lost_with_an_attempt_counts_once() -> None:
    made = look(pool("a"), node("a1", ready=False), node("a2"), lost={"a1-uid": NOW - 5})
    assert counted(made) == 1
    made = look(made, node("a2"), lost={"a1-uid": NOW - 5}, now=NOW + 60)
    assert counted(made) == 1
    made = look(made, node("a2"), lost={"a1-uid": NOW - 5, "old": NOW - 90_000}, now=NOW + 61)
    assert counted(made) == 1, "what is over a day old is counted no more"


def test_a_notice_and_the_loss_of_the_machine_are_one() -> None:
    gone = {"a1-uid": NOW + 70}
    made = look(pool("a"), taken("a1"), node("a2"))
    assert counted(look(made, node("a2"), lost=gone, now=NOW + 80)) == 1
    lost = look(pool("a"), node("a1", ready=False), node("a2"), lost=gone, now=NOW + 80)
    late = dataclasses.replace(taken("a1", id_="shutdown"), ready=False)
    marked = look(lost, late, node("a2"), lost=gone, now=NOW + 90)
    assert counted(marked) == 1, "its cloud has marked what was lost"
    back = look(lost, taken("a1", id_="n-7"), node("a2"), lost=gone, now=NOW + 900)
    assert counted(back) == 2, "it is there again, and is taken"


def test_losses_open_the_breaker() -> None:
    made = look(pool("a", maxInterruptionsPerHour=1), node("a3"), lost={"one": NOW, "two": NOW})
    condition = next(each for each in made.status.conditions if each.type == "BreakerOpen")
    assert condition.status == "True", made.status


# What jobs remember


def lost_uids(scene: Scene) -> list[tuple[str | None, str | None, str | None]]:
    return [(each.reason, each.node, each.lost_uid) for each in scene.status.timeline]


def test_a_job_remembers_the_machine_that_it_lost() -> None:
    scene = Scene(spec(2)).started()
    scene.on_node("a2", ready=False, ready_since=scene.now)
    for _ in range(8):
        scene.run(10)
    assert lost_uids(scene) == [("NodeLost", "a2", "a2-uid")]
    scene = Scene(spec(2)).started()
    scene.mark("a1", reclaim()).run()
    assert lost_uids(scene) == [("Reclaimed", "a1", None)]


def test_a_machine_that_went_with_its_pod_while_nobody_watched() -> None:
    scene = Scene(spec(2)).started()
    scene.remove(1, tombstone=False)
    del scene.nodes["a2"]
    scene.run(600)
    assert lost_uids(scene) == [("NodeLost", "a2", "a2-uid")]


def test_a_rank_that_failed_for_a_peer_that_was_lost() -> None:
    scene = Scene(spec(2)).started().exit(1, 0, exit=Exit(1, "Error", NOW))
    scene.leases = {"a1": NOW - 3, "a2": NOW - 3}
    scene.run().exit(143, 0)
    scene.on_node("a2", ready=False, ready_since=NOW)
    scene.run(30)
    assert lost_uids(scene) == [("NodeLost", "a2", "a2-uid")]


# On the API server, whichever operator looks


class Cluster:
    """Pools as the API server keeps them, nodes and jobs; each ``look`` is another operator's first."""

    def __init__(self, **pools: Json) -> None:
        self.pools = {
            name: {
                "metadata": {"name": name, "uid": name, "resourceVersion": "1", "generation": 1},
                "spec": {"nodeSelector": {"pool": name}, **spec},
            }
            for name, spec in pools.items()
        }
        self.nodes = {name: raw_node(name) for name in ("a1", "a2")}
        self.jobs: list[Json] = []
        self.now = NOW

    async def patch(self, path: str, body: Json) -> Json:
        name = path.split("/")[-2]
        raw = self.pools[name]
        version = str(int(raw["metadata"]["resourceVersion"]) + 1)
        made = raw | {
            "metadata": raw["metadata"] | {"resourceVersion": version},
            "status": merged(raw.get("status") or {}, body["status"]),
        }
        self.pools[name] = made
        return made

    def mark(self, name: str) -> None:
        marks = {"spot.training/notice-id": "n-1", "spot.training/noticed-at": format_time(self.now)}
        taints = [{"key": "spot.training/reclaim", "value": "terminate", "effect": "NoSchedule"}]
        labels = self.nodes[name]["metadata"]["labels"]
        self.nodes[name] = raw_node(name, annotations=marks, taints=taints, unschedulable=True)
        self.nodes[name]["metadata"]["labels"] = labels

    async def look(self, **expected: int) -> None:
        for _ in range(2):
            cache = Cache()
            for raw in self.pools.values():
                cache.pools.put(raw)
            for raw in self.nodes.values():
                cache.nodes.put(raw)
            for raw in self.jobs:
                cache.jobs.put(raw)
            reporter = PoolReporter(cast(Client, self), cache, lambda: self.now)
            for name in sorted(self.pools, reverse=True):
                await reporter.report(name)
            self.now += 5
        seen = {name: raw["status"]["interruptions"]["lastDay"] for name, raw in self.pools.items()}
        assert seen == expected


async def test_a_marked_node_that_changes_pools_counts_in_one() -> None:
    cluster = Cluster(a={}, b={})
    cluster.mark("a1")
    await cluster.look(a=1, b=0)
    cluster.nodes["a1"]["metadata"]["labels"] = {"pool": "b"}
    await cluster.look(a=1, b=0)
    cluster.nodes["a1"]["metadata"]["labels"] = {"pool": "a"}
    await cluster.look(a=1, b=0)


async def test_a_node_of_two_pools_counts_in_both() -> None:
    cluster = Cluster(a={}, b={"nodeSelector": {"pool": "a"}})
    cluster.mark("a1")
    await cluster.look(a=1, b=1)


@pytest.mark.parametrize(("proof", "count"), [(True, 1), (False, 0)])
async def test_a_node_that_vanishes_counts_where_that_proves_it_gone(proof: bool, count: int) -> None:
    cluster = Cluster(a={"nodeDeletionMeansGone": proof})
    await cluster.look(a=0)
    del cluster.nodes["a1"]
    await cluster.look(a=count)
    cluster.nodes["a1"] = raw_node("a1")
    cluster.nodes["a1"]["metadata"]["uid"] = "another"
    await cluster.look(a=count)
    del cluster.nodes["a1"]
    await cluster.look(a=2 * count)


async def test_a_node_that_was_marked_and_gone_while_nobody_looked_counts() -> None:
    cluster = Cluster(a={"nodeDeletionMeansGone": True})
    await cluster.look(a=0)
    cluster.mark("a1")
    del cluster.nodes["a1"]
    await cluster.look(a=1)


@pytest.mark.parametrize("left", ["cordoned", "relabelled", "marked"])
async def test_a_node_that_goes_in_order_is_not_missed(left: str) -> None:
    cluster = Cluster(a={"nodeDeletionMeansGone": True})
    await cluster.look(a=0)
    match left:
        case "cordoned":
            cluster.nodes["a1"]["spec"]["unschedulable"] = True
            await cluster.look(a=0)
            del cluster.nodes["a1"]
            await cluster.look(a=0)
        case "relabelled":
            cluster.nodes["a1"]["metadata"]["labels"] = {}
            await cluster.look(a=0)
            del cluster.nodes["a1"]
            await cluster.look(a=0)
        case "marked":
            cluster.mark("a1")
            await cluster.look(a=1)
            del cluster.nodes["a1"]
            await cluster.look(a=1)


def lossy(name: str, **fields: Any) -> Json:
    entry = {
        "attempt": 1,
        "reason": "NodeLost",
        "node": "a1",
        "lostUid": "a1-uid",
        "pool": "a",
        "stoppedAt": format_time(NOW - 30),
    }
    return raw_job(name, f"{name}-uid", timeline=[entry | fields])


@pytest.mark.parametrize("proof", [True, False])
async def test_what_several_jobs_lost_and_what_vanished_is_one_machine(proof: bool) -> None:
    cluster = Cluster(a={"nodeDeletionMeansGone": proof}, b={})
    await cluster.look(a=0, b=0)
    del cluster.nodes["a1"]
    cluster.jobs = [lossy("one"), lossy("two", stoppedAt=format_time(NOW))]
    await cluster.look(a=1, b=0)
    cluster.jobs = []
    await cluster.look(a=1, b=0)
