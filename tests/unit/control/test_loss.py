"""A rank failed, or its machine did: undecided exits, lost nodes, pods that went unseen."""

import dataclasses
from typing import Any

import pytest

from spot_training.api.status import AttemptNode
from spot_training.control.act import CreatePod
from spot_training.control.policies.fate import Fate, judge
from spot_training.control.world import Ask, Exit, Node
from tests.unit.control.build import GPU, NOW, Scene, node, pool, reclaim, spec


def gang(replicas: int = 2, **fields: Any) -> Scene:
    return Scene(spec(replicas, **fields)).started()


# A gang's failure is not judged at once


def crashed() -> Scene:
    scene = gang().exit(1, 0)
    scene.leases = {"a1": NOW - 3, "a2": NOW - 3}
    scene.run()
    assert (scene.stop.cause, scene.stop.cls) == ("RankExited", None)
    assert scene.counts == (0, 0)
    assert scene.asked == [Ask.LEASES, Ask.LIVE_PODS]
    assert scene.plan.wake_at == NOW + 1
    assert scene.pod(1).deleting, "the rest of the gang is stopped meanwhile"
    return scene.exit(143, 1)


def test_undecided_until_the_peers_lease_is_renewed_then_a_failure() -> None:
    scene = crashed()
    scene.run(1)
    assert (scene.counts, scene.current.attempt) == ((0, 0), 1)
    assert scene.why() == ("False", "Stopping")
    scene.leases["a2"] = NOW + 2
    scene.run(2)
    assert scene.counts == (0, 1)


def test_a_lease_of_the_same_second_proves_nothing() -> None:
    scene = gang().exit(1, 0, exit=Exit(1, "Error", NOW - 0.9))
    scene.leases = {"a2": NOW - 0.5}
    scene.run()
    assert scene.stop.cls is None


def test_a_failure_whose_time_is_not_known_is_judged_all_the_same() -> None:
    scene = gang().exit(1, 0, exit=Exit(1, "Error", 0.0)).run()
    scene.exit(143, 1)
    scene.leases = {"a2": NOW + 5}
    scene.run(6)
    assert scene.counts == (0, 1)


def test_a_dead_peers_clock_that_runs_ahead_makes_its_loss_no_failure() -> None:
    scene = gang().exit(1, 0)
    scene.leases, scene.clocks = {"a1": NOW - 3, "a2": NOW - 3}, {"a2": 3600.0}
    scene.run()
    scene.exit(143, 1).run(10)
    assert (scene.stop.cls, scene.counts) == (None, (0, 0))
    assert "waiting until node a2" in scene.condition().message
    scene.on_node("a2", ready=False, ready_since=NOW + 40).run(30)
    assert scene.counts == (1, 0)


def test_a_living_peers_clock_that_is_slow_holds_nothing_up() -> None:
    scene = crashed()
    scene.clocks = {"a2": -3600.0}
    scene.leases["a2"] = NOW + 2
    scene.run(3)
    assert scene.counts == (0, 1)


def test_a_peers_lease_must_be_renewed_after_it_was_first_looked_at() -> None:
    scene = crashed()
    first = scene.current.undecided[0].leases_since
    assert first is not None
    scene.leases["a1"] = NOW + 2
    scene.run(3)
    assert (scene.stop.cls, scene.current.undecided[0].leases_since) == (None, first)


def test_a_ready_node_without_a_lease_is_not_waited_for_without_end() -> None:
    scene = crashed()
    scene.leases = {"a1": NOW + 500}
    scene.run(119)
    assert scene.stop.cls is None
    scene.run(1)
    assert scene.counts == (0, 1)


def test_a_lease_that_is_renewed_no_more_is_a_lost_node_in_the_end() -> None:
    scene = crashed()
    scene.run(299)
    assert scene.stop.cls is None
    scene.run(1)
    assert scene.counts == (1, 0)
    assert scene.status.timeline[-1].reason == "NodeLost"


def test_a_peers_node_is_marked_after_all() -> None:
    scene = crashed().mark("a2", reclaim())
    scene.leases["a2"] = NOW + 2
    scene.run(3)
    assert scene.counts == (1, 0)
    assert scene.status.timeline[-1].reason == "Reclaimed"


def test_a_peers_node_falls_silent_after_all() -> None:
    scene = crashed().on_node("a2", ready=False, ready_since=NOW + 1)
    scene.leases["a2"] = NOW + 2
    scene.run(3)
    assert scene.counts == (1, 0)
    assert scene.status.timeline[-1].reason == "NodeLost"


def test_a_peer_turns_out_to_have_been_evicted() -> None:
    scene = crashed().change(1, disruption="DeletionByTaintManager")
    scene.leases["a2"] = NOW + 2
    scene.run(3)
    assert scene.counts == (1, 0)


@pytest.mark.parametrize(
    "fields", [{"deleting": True, "disruption": "EvictionByEvictionAPI"}, {"deleting": True}]
)
def test_a_rank_that_dies_for_want_of_an_evicted_peer_is_no_failure(fields: dict[str, Any]) -> None:
    scene = gang().exit(1, 0).change(1, **fields)
    scene.leases = {"a1": NOW + 9, "a2": NOW + 9}
    scene.run()
    assert scene.stop.cls == "Disruption"
    scene.exit(143, 1).run()
    assert scene.counts == (1, 0)


# Pods that cannot be killed


def hanging(writer: str, **fields: Any) -> Scene:
    """Suspended or failed, and rank 0 hangs in the kernel on a node that is ready."""
    scene = gang(2, checkpoint={"writer": writer}, pools=["a"], **fields)
    scene.nodes["a3"] = node("a3")
    scene.change(0, deleting=True, kill_at=NOW + 55).run()
    assert (scene.stop.cause, scene.stop.deadline) == ("PodDeleted", None)
    return scene.exit(143, 1)


def test_a_fenced_program_goes_on_without_a_pod_that_cannot_be_killed_and_keeps_off_its_node() -> None:
    scene = hanging("Library")
    scene.step(60)
    assert scene.current.attempt == 1
    assert scene.plan.wake_at == NOW + 55 + 30
    assert "killed at" in scene.condition().message
    scene.used = {("a1", GPU): 2}
    scene.step(25)
    assert Ask.LIVE_PODS in scene.asked, "a cache may be wrong"
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))
    assert scene.current.avoid == ["a1"]
    (suspect,) = scene.status.suspect_nodes
    assert (suspect.name, suspect.reason) == ("a1", "StuckTerminating")
    assert "StuckTerminating" in [story.reason for story in scene.plan.stories]


def test_another_program_waits_for_it_and_the_condition_says_what_to_do() -> None:
    scene = hanging("Other")
    scene.step(60)
    assert scene.asked == [], "it has half a minute yet"
    scene.step(25)
    assert scene.asked == [Ask.LIVE_PODS], "on the word of a cache nobody is sent to look after it"
    assert scene.current.attempt == 1
    assert [story.reason for story in scene.plan.stories] == ["StuckTerminating"]
    assert "kubectl -n ns delete pod job-1-0 --force --grace-period=0" in scene.condition().message
    assert "node.kubernetes.io/out-of-service=:NoExecute" in scene.condition().message
    scene.step(3600)
    assert (scene.current.attempt, scene.plan.stories) == (1, ())
    scene.remove(0).step()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


# Machines that are lost


def lost(writer: str, **fields: Any) -> Scene:
    scene = gang(1, checkpoint={"writer": writer}, **fields).on_node("a1", ready=False, ready_since=NOW)
    scene.run()
    assert scene.current.stop is None
    assert scene.plan.wake_at == NOW + 60
    scene.run(60)
    assert scene.current.stop is not None or scene.current.attempt == 2, scene.current
    return scene


def test_a_lost_node_under_a_fenced_program_is_left_behind_at_once() -> None:
    scene = lost("Library")
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))
    assert scene.status.timeline[-1].reason == "NodeLost"


def test_a_lost_node_under_another_program_is_waited_for_and_the_condition_says_so() -> None:
    scene = lost("Other")
    assert (scene.current.attempt, scene.stop.cls, scene.status.phase) == (1, "Disruption", "Recovering")
    assert scene.plan.wake_at == NOW + 300
    assert scene.pod().deleting
    assert "cannot be kept apart (checkpoint.writer: Other)" in scene.condition().message
    assert "node.kubernetes.io/out-of-service" in scene.condition().message
    scene.remove(tombstone=True).run(239)
    assert scene.current.attempt == 1, "that the pod object went proves nothing"
    scene.run(1)
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_it_is_not_lost_if_it_comes_back_in_time() -> None:
    scene = gang(1).on_node("a1", ready=False, ready_since=NOW).run(59)
    scene.on_node("a1", ready=True, ready_since=NOW + 59).run(100)
    assert (scene.current.attempt, scene.current.stop, scene.status.phase) == (1, None, "Running")


def test_another_machine_of_the_same_name_proves_it_gone() -> None:
    scene = gang(1, checkpoint={"writer": "Other"}).on_node("a1", uid="new").run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_out_of_service_proves_it_gone() -> None:
    scene = lost("Other").on_node("a1", out_of_service=True).run()
    assert scene.current.attempt == 2


@pytest.mark.parametrize(
    ("proof", "writer", "attempt"),
    [(True, "Other", 2), (False, "Other", 1), (True, "Library", 2), (False, "Library", 2)],
)
def test_a_deleted_node_is_proof_where_the_pool_says_so(proof: bool, writer: str, attempt: int) -> None:
    scene = gang(1, checkpoint={"writer": writer})
    scene.pools["a"] = pool("a", nodeDeletionMeansGone=proof)
    del scene.nodes["a1"]
    scene.run()
    assert scene.current.attempt == attempt
    scene.run(300)
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_when_most_of_a_pool_falls_silent_the_network_is_suspected() -> None:
    scene = Scene()
    scene.nodes = {f"a{number}": node(f"a{number}") for number in range(1, 6)}
    scene.started()
    for name in ("a1", "a2", "a3"):
        scene.on_node(name, ready=False, ready_since=NOW)
    scene.run(60)
    assert (scene.current.stop, scene.plan.wake_at) == (None, NOW + 300)
    scene.run(240)
    assert scene.counts == (1, 0)


class Nodes(dict[str, Node]):
    """Nodes of which nobody goes over all."""

    def __iter__(self) -> Any:
        raise AssertionError("a rank's fate is not worth a look at every node of the cluster")

    def values(self) -> Any:
        return iter(self)

    def items(self) -> Any:
        return iter(self)


def test_the_fate_of_a_rank_is_found_without_going_over_all_nodes() -> None:
    scene = Scene()
    scene.nodes = {
        f"a{number}": node(f"a{number}", ready=number > 3, ready_since=NOW) for number in range(1, 6)
    }
    world = dataclasses.replace(scene.world(), nodes=Nodes(scene.nodes))
    ref = AttemptNode(index=0, name="a1", uid="a1-uid")
    verdict = judge(ref, world, scene.pools["a"], scene.job.spec.recovery, NOW + 60)
    assert (verdict.fate, verdict.changes_at) == (Fate.SILENT, NOW + 300)
    assert "more than half of its pool" in verdict.why


def test_a_pod_that_is_missing_is_looked_up_before_it_means_anything() -> None:
    scene = gang(1).remove(tombstone=False)
    scene.run()
    assert scene.asked == [Ask.LIVE_PODS]
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))
    assert scene.status.timeline[-1].reason == "PodGone"


@pytest.mark.parametrize(("writer", "waits"), [("Library", 0), ("Other", 300)])
@pytest.mark.parametrize("gone", [True, False])
def test_a_rank_that_may_run_on_where_nobody_sees_it_is_not_made_twice(
    writer: str, waits: int, gone: bool
) -> None:
    """Its start was seen by nobody, and its node has gone, or has fallen silent, before it was noted."""
    scene = Scene(spec(2, checkpoint={"writer": writer}, pools=["a"])).run().remove(1)
    scene.change(0, node="", phase="Pending")
    if gone:
        del scene.nodes["a2"]
    else:
        scene.on_node("a2", ready=False, ready_since=NOW)
    assert CreatePod(1) not in scene.step()
    assert (scene.stop.cls, scene.current.attempt) == ("Disruption", 1)
    scene.remove(0)
    if waits:
        scene.step(waits - 1)
        assert scene.current.end is None, "it may still write"
        scene.step(1)
    else:
        scene.step(60)
    assert scene.current.attempt == 2 or scene.current.end is not None
    assert scene.counts == (1, 0)


def test_a_pod_seen_deleted_without_its_exit_is_a_disruption() -> None:
    scene = gang(1).remove(tombstone=True)
    scene.run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_a_created_pod_that_no_cache_has_seen_yet_is_looked_up_before_the_attempt_ends() -> None:
    scene = Scene(spec(replicas=2)).run().remove(1, tombstone=False).edit(suspend=True)
    scene.remove(0).step()
    assert scene.asked == [Ask.LIVE_PODS]
