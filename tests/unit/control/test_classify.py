"""The classification table, a row at a time, on pods as the API server sends them, and what becomes of the job."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from spot_training.control.policies.classify import Case, classify
from spot_training.control.policies.marks import FOREIGN_MARKS, GONE_TAINTS
from spot_training.control.read import read_node, read_pod
from spot_training.control.world import Exit
from tests.unit.control.build import NOW, Scene, reclaim, spec
from tests.unit.control.objects import Json, ended_pod, raw_node, raw_pod, terminated


def targeted(raw: Json, reason: str, type_: str = "DisruptionTarget") -> Json:
    raw["status"].setdefault("conditions", []).append({"type": type_, "status": "True", "reason": reason})
    return raw


def refused(reason: str) -> Json:
    """A pod that kubelet did not take in: no container of it ever was."""
    return raw_pod(phase="Failed", containerStatuses=[], reason=reason)


def of_kubelet(raw: Json, reason: str) -> Json:
    raw["status"]["reason"] = reason
    return raw


def deleted(raw: Json) -> Json:
    raw["metadata"]["deletionTimestamp"] = "2026-04-08T05:10:00Z"
    return raw


def init_failed(code: int, **fields: Any) -> Json:
    waits = [{"name": name, "state": {"waiting": {"reason": "PodInitializing"}}} for name in ("main", "side")]
    init = [{"name": "fetch", "state": terminated(code, **fields)}]
    return raw_pod(phase="Failed", containerStatuses=waits, initContainerStatuses=init)


UNSTARTED = {"reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"}
PREEMPTED = '{"reason":"Preempted","step":9}'
COMPLETED = '{"reason":"Completed"}'
RETRYABLE = frozenset({42})

Row = tuple[str, Json, dict[str, Any], str, str]

ROWS: list[Row] = [
    ("exit code 0", ended_pod(0, phase="Succeeded"), {}, "Completed", "Completed"),
    (
        "exit code 0 after a stop, and the program says so",
        ended_pod(0, COMPLETED),
        {"told": True},
        "Completed",
        "",
    ),
    ("exit code 0 after a stop", ended_pod(0), {"told": True}, "Stopped", "Stopped"),
    ("any exit after a stop", ended_pod(1), {"told": True}, "Stopped", "Stopped"),
    ("our agent's deletion", targeted(ended_pod(143), "SpotReclamation"), {}, "Disruption", "Reclaimed"),
    ("an eviction", targeted(ended_pod(143), "EvictionByEvictionAPI"), {}, "Disruption", "Evicted"),
    (
        "a preemption",
        targeted(ended_pod(137), "PreemptionByScheduler"),
        {},
        "Disruption",
        "PreemptedByScheduler",
    ),
    (
        "a taint's eviction",
        targeted(ended_pod(137), "DeletionByTaintManager"),
        {},
        "Disruption",
        "TaintEviction",
    ),
    (
        "a lost node's pod, collected",
        targeted(raw_pod(phase="Failed"), "DeletionByPodGC"),
        {},
        "Disruption",
        "NodeLost",
    ),
    (
        "node pressure",
        of_kubelet(targeted(ended_pod(137), "TerminationByKubelet"), "Evicted"),
        {},
        "Disruption",
        "NodePressure",
    ),
    (
        "a graceful node shutdown",
        of_kubelet(targeted(ended_pod(143), "TerminationByKubelet"), "Terminated"),
        {},
        "Disruption",
        "NodeShutdown",
    ),
    (
        "kubelet's preemption for a critical pod",
        of_kubelet(targeted(ended_pod(143), "TerminationByKubelet"), "Preempting"),
        {},
        "Disruption",
        "PreemptedByScheduler",
    ),
    (
        "a shutdown without the condition",
        of_kubelet(ended_pod(143), "NodeShutdown"),
        {},
        "Disruption",
        "NodeShutdown",
    ),
    (
        "kubelet's eviction without the condition",
        of_kubelet(ended_pod(137), "Evicted"),
        {},
        "Disruption",
        "Evicted",
    ),
    (
        "Kueue's eviction",
        targeted(ended_pod(143), "WorkloadEvicted", "TerminationTarget"),
        {},
        "Disruption",
        "EvictedByKueue",
    ),
    ("somebody else's reason", targeted(ended_pod(143), "OfAnother"), {}, "Disruption", "OfAnother"),
    ("no room at the node", refused("OutOfnvidia.com/gpu"), {}, "Disruption", "NodeRefused"),
    ("a device that is missing", refused("UnexpectedAdmissionError"), {}, "Disruption", "NodeRefused"),
    ("a node that changed its labels", refused("NodeAffinity"), {}, "Disruption", "NodeRefused"),
    ("a NUMA misfit", refused("TopologyAffinityError"), {}, "Disruption", "NodeRefused"),
    ("another refusal", refused("SomethingNew"), {}, "NotStarted", "PodRefused"),
    ("a reboot", ended_pod(255, reason="Unknown"), {}, "Disruption", "NodeRestarted"),
    (
        "a container that was lost",
        ended_pod(137, reason="ContainerStatusUnknown"),
        {},
        "Disruption",
        "NodeRestarted",
    ),
    ("a machine that is lost", ended_pod(1), {"node_why": "node a1 is gone"}, "Disruption", "NodeLost"),
    ("somebody deletes the pod", deleted(ended_pod(143)), {}, "Disruption", "PodDeleted"),
    ("the program says it was told", ended_pod(1, PREEMPTED), {}, "Disruption", "Preempted"),
    ("no such command", ended_pod(128, **UNSTARTED), {}, "NotStarted", "StartError"),
    ("a retryable exit code", ended_pod(42), {"retryable": RETRYABLE}, "Disruption", "RetryableExit"),
    ("another exit code", ended_pod(41), {"retryable": RETRYABLE}, "Failure", "ExitCode"),
    ("out of memory", ended_pod(137, reason="OOMKilled"), {}, "Failure", "OOMKilled"),
    ("a signal from nobody", ended_pod(143), {}, "Failure", "ExitCode"),
    ("an init container that fails", init_failed(1), {}, "NotStarted", "InitFailed"),
    ("an init container that cannot start", init_failed(128, **UNSTARTED), {}, "NotStarted", "PodRefused"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row(row: Row) -> None:
    _, raw, around, cls, reason = row
    about: dict[str, Any] = {"told": False} | around
    judgement = classify(Case(read_pod(raw), **about))
    assert judgement.cls == cls, judgement
    assert judgement.reason == (reason or judgement.reason), judgement
    assert judgement.message


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (3, "Error", "exit code 3"),
        (139, "Error", "exit code 139 (SIGSEGV)"),
        (137, "OOMKilled", "exit code 137 (SIGKILL)"),
        (137, "Error", "exit code 137 (SIGKILL, which most often means that its memory was used up)"),
        (255, "Error", "exit code 255"),
    ],
)
def test_an_exit_code_is_told_with_its_signal(code: int, reason: str, words: str) -> None:
    assert classify(Case(read_pod(ended_pod(code, reason=reason)), told=False)).message == words


@pytest.mark.parametrize("key", sorted(FOREIGN_MARKS))
def test_the_marks_of_others_are_read_from_the_node(key: str) -> None:
    node = read_node(raw_node(taints=[{"key": key, "effect": "NoSchedule"}]))
    assert node.notice is not None
    assert node.notice.source == FOREIGN_MARKS[key]
    assert node.out_of_service is (key in GONE_TAINTS)


# What becomes of the job

Happening = Callable[[Scene], Any]


def _pod_gone_unseen(scene: Scene) -> None:
    scene.remove(tombstone=False)


def _exit(code: int, reason: str = "Error") -> Happening:
    return lambda scene: scene.exit(code, exit=Exit(code, reason, scene.now))


def _fields(**fields: Any) -> Happening:
    return lambda scene: scene.exit(143, **fields)


def _node(**fields: Any) -> Happening:
    return lambda scene: scene.on_node("a1", **fields)


ENDS: list[tuple[str, Happening, str, tuple[int, int]]] = [
    ("reclaimed", lambda scene: scene.mark("a1", reclaim()).exit(143), "Reclaimed", (1, 0)),
    ("evicted", _fields(disruption="EvictionByEvictionAPI"), "Evicted", (1, 0)),
    ("preempted", _fields(disruption="PreemptionByScheduler"), "PreemptedByScheduler", (1, 0)),
    ("evicted by a taint", _fields(disruption="DeletionByTaintManager"), "TaintEviction", (1, 0)),
    ("shut down", _fields(status_reason="NodeShutdown"), "NodeShutdown", (1, 0)),
    ("deleted by a user", _fields(deleting=True), "PodDeleted", (1, 0)),
    ("gone unseen", _pod_gone_unseen, "PodGone", (1, 0)),
    ("on a node that is another", _node(uid="new"), "NodeLost", (1, 0)),
    ("on a node that is out of service", _node(out_of_service=True), "NodeLost", (1, 0)),
    ("rebooted", _exit(255, "Unknown"), "NodeRestarted", (1, 0)),
    ("asking for another try", _exit(42), "RetryableExit", (1, 0)),
    ("failed", _exit(1), "ExitCode", (0, 1)),
    ("out of memory", _exit(137, "OOMKilled"), "OOMKilled", (0, 1)),
]


@pytest.mark.parametrize(
    ("happening", "reason", "counts"), [each[1:] for each in ENDS], ids=[each[0] for each in ENDS]
)
def test_the_reason_and_the_counter(happening: Happening, reason: str, counts: tuple[int, int]) -> None:
    scene = Scene(spec(recovery={"retryableExitCodes": [42]})).started()
    happening(scene)
    scene.run()
    assert scene.counts == counts
    assert scene.status.timeline[-1].reason == reason
    opened_at_once = scene.current.attempt == 2
    assert opened_at_once is (counts == (1, 0)), (
        "after a first disruption there is no delay, after a failure there is"
    )


# Exit codes that ask for another try


def test_a_retryable_exit_uses_up_no_failure_and_waits_longer_each_time() -> None:
    recovery = {
        "maxFailures": 0,
        "retryableExitCodes": [42],
        "backoff": {"initialSeconds": 100, "maxSeconds": 150},
    }
    scene = Scene(spec(recovery=recovery)).started()
    for count in range(1, 5):
        scene.exit(42).run()
        assert scene.counts == (count, 0)
        if count > 1:
            assert 0 < scene.left(scene.status.next_try_at) <= min(150, 100 * 2 ** (count - 2))
            scene.run(scene.left(scene.status.next_try_at))
        scene.started()


def test_it_counts_against_max_disruptions() -> None:
    scene = Scene(spec(recovery={"maxDisruptions": 0, "retryableExitCodes": [42]})).started()
    scene.exit(42).run()
    assert (scene.status.phase, scene.why("Failed")) == ("Failed", ("True", "MaxDisruptions"))


def test_a_rank_that_asks_for_another_try_because_its_peer_failed_excuses_nobody() -> None:
    scene = Scene(spec(2, recovery={"retryableExitCodes": [42]})).started()
    scene.leases = {"a1": NOW + 9, "a2": NOW + 9}
    scene.exit(42, 0).exit(1, 1).run()
    scene.run(1)
    assert scene.counts == (0, 1)
    assert scene.status.timeline[-1].reason == "ExitCode"


def test_a_peer_that_could_not_be_started_excuses_the_others() -> None:
    scene = Scene(spec(2)).run()
    scene.exit(1, 0, started_at=NOW)
    scene.exit(128, 1, started_at=None, exit=Exit(128, "StartError", NOW)).run()
    assert (scene.counts, scene.status.start_streak) == ((0, 0), 1)


def test_a_collected_pod_of_a_lost_node_may_have_started_unseen() -> None:
    raw = targeted(raw_pod(phase="Failed", containerStatuses=[]), "DeletionByPodGC")
    assert not read_pod(raw).ended
    raw["spec"]["nodeName"] = ""
    assert read_pod(raw).ended, "what no node has had has run nowhere"


def test_the_next_attempt_of_a_program_that_cannot_be_fenced_waits_for_such_a_pod() -> None:
    scene = Scene(spec(checkpoint={"writer": "Other"})).run()
    lost = targeted(raw_pod(phase="Failed", containerStatuses=[]), "DeletionByPodGC")
    scene.on_node("a1", ready=False, ready_since=NOW - 100)
    read = read_pod(lost)
    scene.change(disruption=read.disruption, ended=read.ended, phase=read.phase).run()
    assert (scene.stop.cls, scene.stop.cause, scene.current.attempt) == ("Disruption", "NodeLost", 1)
    scene.run(300)
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_an_init_container_that_fails_is_no_failure_of_the_program_and_says_which_it_was() -> None:
    read = read_pod(init_failed(3))
    scene = Scene(spec(recovery={"maxFailures": 0})).run()
    fields = {"ended": True, "phase": "Failed", "status_reason": read.status_reason, "trouble": read.trouble}
    scene.change(0, **fields).run()
    assert (scene.counts, scene.status.start_streak) == ((0, 0), 1)
    assert scene.left(scene.status.next_try_at) > 0
    assert "init container fetch ended with exit code 3; look at its log" in scene.condition().message


def test_the_words_of_the_runtime_are_told() -> None:
    raw = ended_pod(128, 'exec: "trian.py": executable file not found in $PATH', **UNSTARTED)
    judgement = classify(Case(read_pod(raw), told=False))
    assert 'exec: "trian.py": executable file not found' in judgement.message
    assert dataclasses.asdict(read_pod(ended_pod(1, "whatever the program wrote")))["exit"]["message"] == ""
