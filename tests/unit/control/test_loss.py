"""A rank failed, or its machine did: undecided exits, lost nodes, pods that went unseen."""

from typing import Any

import pytest

from spot_training.control.world import Ask, Exit
from tests.unit.control.build import NOW, Scene, node, pool, reclaim, spec


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


def test_a_pod_that_is_missing_is_looked_up_before_it_means_anything() -> None:
    scene = gang(1).remove(tombstone=False)
    scene.run()
    assert scene.asked == [Ask.LIVE_PODS]
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))
    assert scene.status.timeline[-1].reason == "PodGone"


def test_a_pod_seen_deleted_without_its_exit_is_a_disruption() -> None:
    scene = gang(1).remove(tombstone=True)
    scene.run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_a_created_pod_that_no_cache_has_seen_yet_is_looked_up_before_the_attempt_ends() -> None:
    scene = Scene(spec(replicas=2)).run().remove(1, tombstone=False).edit(suspend=True)
    scene.remove(0).step()
    assert scene.asked == [Ask.LIVE_PODS]
