"""After setbacks: machines that are kept off, pools that are tried last, and how often it is tried at all."""

import dataclasses
from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod, DeletePod
from spot_training.control.policies.avoid import AVOID_SECONDS, MAX_SUSPECTS, WINDOW_SECONDS, avoided, strike
from spot_training.control.world import Exit, Report
from tests.unit.control.build import GPU, NOW, Scene, pool, reclaim, spec

RECOVERY: dict[str, Any] = {"maxFailures": 99, "backoff": {"initialSeconds": 1, "maxSeconds": 1}}

# Machines on which attempts keep failing


def failed(times: int, code: int = 1, **fields: Any) -> Scene:
    """A job whose attempts failed so often on the first node that they got."""
    scene = Scene(spec(**{"pools": ["a"], "recovery": RECOVERY} | fields))
    for _ in range(times):
        scene.started().exit(code).run()
        scene.run(2)
    return scene


def test_after_two_failures_on_a_node_the_next_attempt_is_elsewhere() -> None:
    scene = failed(1)
    assert (scene.current.avoid, scene.status.suspect_nodes[0].avoided_until) == ([], None)
    scene = failed(2)
    (suspect,) = scene.status.suspect_nodes
    assert (suspect.name, suspect.uid, suspect.failures, suspect.reason) == ("a1", "a1-uid", 2, "ExitCode")
    assert scene.left(suspect.avoided_until) == AVOID_SECONDS - 2
    assert scene.current.avoid == ["a1"]
    made = manifests.pod(scene.job, 3, 0, pool("a"), scene.current)["spec"]["affinity"]["nodeAffinity"]
    (term,) = made["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["a1"]}]


def test_the_user_is_told_when_a_node_begins_to_be_avoided() -> None:
    scene = failed(1).started().exit(1)
    scene.run()
    assert "NodeAvoided" in [story.reason for story in scene.plan.stories]


def test_where_there_is_no_room_elsewhere_the_node_is_taken_all_the_same() -> None:
    scene = failed(1)
    scene.used = {("a2", GPU): 1}
    scene.started().exit(1).run()
    scene.run(2)
    assert (scene.current.attempt, scene.current.avoid) == (3, [])


def test_a_machine_that_is_new_has_done_nothing_wrong() -> None:
    scene = failed(1).started().exit(1).run()
    scene.on_node("a1", uid="new").run(2)
    assert scene.current.avoid == []


def test_it_passes() -> None:
    scene = failed(2)
    nodes, known = scene.nodes, scene.status.suspect_nodes
    assert set(avoided(known, nodes, scene.now)) == {"a1"}
    assert avoided(known, nodes, scene.now + AVOID_SECONDS) == {}
    later = strike(known, "a1", "a1-uid", "ExitCode", scene.now + WINDOW_SECONDS)
    assert [each.failures for each in later] == [1], "what was long ago does not count"


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"exit": Exit(128, "StartError", NOW), "started_at": None}, True),
        ({"exit": None, "status_reason": "UnexpectedAdmissionError", "started_at": None}, True),
        ({"exit": Exit(42, "Error", NOW)}, True),
        ({"exit": Exit(1, "Error", NOW), "disruption": "EvictionByEvictionAPI"}, False),
        ({"deleting": True}, False),
    ],
)
def test_what_speaks_against_a_node(fields: dict[str, Any], blamed: bool) -> None:
    scene = Scene(spec(recovery=RECOVERY | {"retryableExitCodes": [42]})).run()
    scene.exit(1, **({"started_at": NOW} | fields)).run()
    assert [each.name for each in scene.status.suspect_nodes] == (["a1"] if blamed else [])


def test_a_pod_that_does_not_start_in_time_speaks_against_its_node() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=10)).run().run(10).remove().run()
    assert [(each.name, each.reason) for each in scene.status.suspect_nodes] == [("a1", "ProvisionTimeout")]


def test_the_list_is_bounded() -> None:
    known: list[Any] = []
    for number in range(MAX_SUSPECTS + 9):
        known = strike(known, f"n{number}", "u", "ExitCode", NOW + number)
    assert [each.name for each in known][:: MAX_SUSPECTS - 1] == ["n9", f"n{MAX_SUSPECTS + 8}"]


def test_nodes_that_are_avoided_are_no_room() -> None:
    scene = failed(1, pools=["a", "b"])
    scene.used = {("a2", GPU): 4}
    scene.started().exit(1).run()
    scene.run(2)
    assert (scene.current.attempt, scene.current.pool, scene.current.avoid) == (3, "b", ["a1"])
    del scene.nodes["a2"]
    scene.exit(143, deleting=True).run()
    assert "a: its 1 usable nodes are avoided for now" in scene.condition("CapacityAvailable").message


# Pools that just reclaimed


def test_a_pool_that_just_reclaimed_is_tried_last_for_a_while() -> None:
    scene = Scene().started().mark("a1", reclaim()).run().exit(143).run()
    assert (scene.current.attempt, scene.current.pool) == (2, "b"), (
        "a2 is free, and in the pool that reclaims"
    )
    assert [(each.pool, each.reason) for each in scene.status.demoted_pools] == [("a", "Reclaimed")]
    scene.started().run(601).exit(143, deleting=True).run()
    assert (scene.current.attempt, scene.current.pool, scene.status.demoted_pools) == (3, "a", [])


def test_it_is_tried_all_the_same_where_there_is_no_other() -> None:
    scene = Scene(spec(pools=["a"])).started().mark("a1", reclaim()).run().exit(143).run()
    assert (scene.current.attempt, scene.current.pool) == (2, "a")


# No thrash

ATTEMPTS_AN_HOUR = 40


class Flapping:
    """Capacity that comes and goes every ten seconds; every program saves when it is told to stop."""

    def __init__(self, uid: str, in_turn: bool, **fields: Any) -> None:
        self.scene = Scene(spec(recovery={"maxFailures": 0}, **fields), uid=uid)
        self.in_turn = in_turn

    def hour(self) -> int:
        """How many attempts were opened in an hour."""
        for second in range(0, 3600, 5):
            self.flap(up=second // 10 % 2 == 0)
            self.look()
        assert self.scene.status.failures == 0
        return self.scene.current.attempt

    def flap(self, up: bool) -> None:
        for name in self.scene.nodes:
            there = up if name[0] == "a" or not self.in_turn else not up
            self.scene.mark(name, None if there else reclaim(self.scene.now - NOW + 8))

    def look(self) -> None:
        scene = self.scene
        for name, pod in list(scene.pods.items()):
            if pod.deleting and not pod.ended:
                done = Exit(143, "Error", scene.now)
                scene.pods[name] = dataclasses.replace(pod, ended=True, running=False, exit=done)
        for action in scene.step():
            match action:
                case CreatePod(index=index):
                    scene.bind(index)
                    scene.change(index, job_uid=scene.job.uid, started_at=scene.now, running=True)
                case DeletePod(name=name):
                    scene.pods[name] = dataclasses.replace(
                        scene.pods[name], deleting=True, kill_at=scene.now + 8
                    )
        scene.now += 5
        mine = [name for name, pod in scene.pods.items() if pod.attempt < scene.current.attempt - 1]
        for name in mine:
            del scene.pods[name]


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("pools", [["a"], ["a", "b"]])
def test_under_capacity_that_flaps_attempts_stay_within_the_bound(in_turn: bool, pools: list[str]) -> None:
    counts = [Flapping(f"job-{number}", in_turn, pools=pools).hour() for number in range(4)]
    assert max(counts) <= ATTEMPTS_AN_HOUR, counts
    assert min(counts) >= 8, f"it hardly tries: {counts}"


def test_a_gang_that_is_never_whole_is_not_opened_all_the_time() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=1))
    for _ in range(3600):
        scene.run(1)
        for name in [name for name, pod in scene.pods.items() if pod.deleting]:
            del scene.pods[name]
    assert 8 <= scene.current.attempt <= ATTEMPTS_AN_HOUR
    assert scene.counts == (0, 0)


# Clocks of nodes


def slow(scene: Scene, report: Report | None = None) -> Scene:
    """An attempt whose pod was two hours ago when it started, by its node's clock; it ended two seconds later."""
    then = scene.run().run(100).now - 7200
    scene.change(started_at=then, running=True, phase="Running").run()
    assert (scene.status.phase, scene.current.started_at) == ("Running", scene.current.opened_at)
    return scene.run(2).exit(1, report=report, exit=Exit(1, "Error", then + 2)).run()


def test_what_ran_for_two_seconds_on_a_node_whose_clock_is_slow_did_not_run_long() -> None:
    scene = slow(Scene(spec(recovery=RECOVERY))).run(2)
    assert slow(scene).status.failure_streak == 2


@pytest.mark.parametrize(
    ("resumed", "at", "streak"), [(None, 1.0, 1), (None, -1.0, 2), (119, 1.0, 1), (120, 1.0, 2)]
)
def test_a_save_is_one_whatever_the_time_is_on_its_node(resumed: int | None, at: float, streak: int) -> None:
    """A report tells of the checkpoint that was loaded, too."""
    scene = slow(Scene(spec(recovery=RECOVERY))).run(2)
    saved = scene.now + 100 - 7200 + at
    scene = slow(scene, Report(checkpoint_step=120, checkpoint_time=saved, resumed_step=resumed))
    assert scene.status.failure_streak == streak


def test_a_node_whose_clock_is_fast_starts_nothing_in_the_future() -> None:
    scene = Scene(spec(recovery=RECOVERY)).run()
    scene.change(started_at=scene.now + 7200, running=True, phase="Running").run(3)
    assert scene.left(scene.current.running_at) == 0
    scene.run(60).exit(1, exit=Exit(1, "Error", scene.now + 7200)).run()
    assert scene.status.failure_streak == 1
