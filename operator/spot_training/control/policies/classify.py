"""Was it the program, or was it the machine? One table, asked about every pod that ended.

The first row that matches decides. A reclamation is never counted as the program's failure: a pod that was told
to stop, by whomever, did not fail. A non-zero exit in a gang is not judged at once, for the surviving ranks die
within seconds of a silent node loss, long before anything says so (see :func:`unheard`).
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from spot_training.control.world import Exit, Pod

Class = Literal["Completed", "Stopped", "Disruption", "Failure", "NotStarted", "Blocked"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a pod's end means. ``reason`` is a word for programs, ``message`` a sentence for people."""

    cls: Class
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Case:
    """A pod that ended or went missing, and what is known around it. ``told``: the attempt is being stopped;
    ``node_why``: why its machine is thought to be taken or lost, or empty; ``retryable``: exit codes with which the
    program asks for another try.
    """

    pod: Pod
    told: bool
    node_why: str = ""
    retryable: frozenset[int] = frozenset()


POD_STATUS_REASONS: Final[Mapping[str, str]] = {
    "Evicted": "Evicted",
    "NodeShutdown": "NodeShutdown",
    "Terminated": "NodeShutdown",
    "Shutdown": "NodeShutdown",
    "NodeLost": "NodeLost",
    "Preempting": "PreemptedByScheduler",
    "UnexpectedAdmissionError": "NodeRefused",
    "NodeAffinity": "NodeRefused",
    "TopologyAffinityError": "NodeRefused",
    "OutOfcpu": "NodeRefused",
    "OutOfmemory": "NodeRefused",
    "OutOfpods": "NodeRefused",
}
"""``status.reason`` of a pod that kubelet ended or never took in."""

DISRUPTION_REASONS: Final[Mapping[str, str]] = {
    "EvictionByEvictionAPI": "Evicted",
    "PreemptionByScheduler": "PreemptedByScheduler",
    "DeletionByTaintManager": "TaintEviction",
    "DeletionByPodGC": "NodeLost",
    "TerminationByKubelet": "NodePressure",
    "NodeShutdown": "NodeShutdown",
    "SpotReclamation": "Reclaimed",
    "TerminationTarget": "EvictedByKueue",
}
"""Reasons of the pod condition DisruptionTarget; Kueue has a condition of its own for the same."""


UNTRACKED: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons that kubelet and containerd make up for a container whose exit nobody saw, as after a reboot."""

INIT_FAILED: Final = "InitContainerFailed"
"""Our word, in place of a pod's ``status.reason``, where an init container ended with another code than 0."""

START_ERRORS: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of runtimes for a container that they could not start: a command that is not there, a GPU's driver."""

RETRYABLE: Final = "RetryableExit"

VOLUME_FULL: Final = "VolumeFull"
"""The library's word where the program ended because there was no room for a checkpoint."""


def _completed(case: Case) -> Judgement | None:
    done = case.pod.report is not None and case.pod.report.reason == "Completed"
    if case.pod.exit is None or case.pod.exit.code != 0:
        return None
    # Kubelet, too, tells a pod to stop: one that has run for longer than it may.
    told = case.told or case.pod.disruption or case.pod.deleting
    if done or not (told or case.pod.status_reason == "DeadlineExceeded"):
        return Judgement("Completed", "Completed", "the program ended with exit code 0")
    return None


def _told(case: Case) -> Judgement | None:
    return Judgement("Stopped", "Stopped", "stopped as told") if case.told else None


def _marked(case: Case) -> Judgement | None:
    reason = DISRUPTION_REASONS.get(case.pod.disruption, case.pod.disruption)
    if case.pod.disruption == "TerminationByKubelet" and case.pod.status_reason != "Evicted":
        # One word of kubelet's for pressure, shutdown and preemption; the pod's own reason tells them apart.
        reason = POD_STATUS_REASONS.get(case.pod.status_reason, reason)
    return Judgement("Disruption", reason, f"the pod was marked: {case.pod.disruption}") if reason else None


def _kubelet(case: Case) -> Judgement | None:
    word = case.pod.status_reason
    reason = "NodeRefused" if word.startswith("OutOf") else POD_STATUS_REASONS.get(word)
    return Judgement("Disruption", reason, f"the kubelet says {word}") if reason else None


def _untracked(case: Case) -> Judgement | None:
    if case.pod.exit is None or case.pod.exit.reason not in UNTRACKED:
        return None
    why = f"the machine restarted, or lost track of the container (reason {case.pod.exit.reason})"
    return Judgement("Disruption", "NodeRestarted", why)


def _node(case: Case) -> Judgement | None:
    return Judgement("Disruption", "NodeLost", case.node_why) if case.node_why else None


def _full(case: Case) -> Judgement | None:
    said = case.pod.report is not None and case.pod.report.reason == VOLUME_FULL
    if case.pod.exit is not None and case.pod.exit.code != 0 and said:
        return Judgement("Blocked", "ClaimFull", "there was no room for a checkpoint on the claim")
    return None


def _deleted(case: Case) -> Judgement | None:
    if case.pod.deleting or case.pod.removed:
        return Judgement("Disruption", "PodDeleted", "somebody deleted the pod")
    return None


def _unstarted(case: Case) -> Judgement | None:
    """What never started cannot have failed: the program has not had its turn."""
    pod = case.pod
    if pod.started_at is not None:
        return None
    if pod.status_reason == INIT_FAILED:
        said = pod.trouble or "an init container ended with another exit code than 0"
        return Judgement("NotStarted", "InitFailed", f"{said}; look at its log")
    if pod.exit is None:
        word = pod.status_reason or "unknown"
        return Judgement("NotStarted", "PodRefused", f"the pod ended before it started (reason {word})")
    if pod.exit.reason not in START_ERRORS:
        return None
    said = f": {pod.exit.message}" if pod.exit.message else ""
    return Judgement(
        "NotStarted",
        "StartError",
        f"the container could not be started{said}; look at its command, and at the GPU driver and the device "
        "plugin of its node",
    )


def _preempted(case: Case) -> Judgement | None:
    said = case.pod.report is not None and case.pod.report.reason == "Preempted"
    # The report counts more than the code: a runtime may crash on its way out, after everything was saved.
    if case.pod.exit is not None and case.pod.exit.code != 0 and said:
        return Judgement("Disruption", "Preempted", "the program was told to stop, not by this operator")
    return None


def _retryable(case: Case) -> Judgement | None:
    end = case.pod.exit
    if end is None or end.code not in case.retryable:
        return None
    return Judgement("Disruption", RETRYABLE, f"exit code {end.code}, which recovery.retryableExitCodes has")


def _failed(case: Case) -> Judgement | None:
    end = case.pod.exit
    if end is None:
        word = case.pod.status_reason or "unknown"
        return Judgement("Failure", "PodFailed", f"the pod failed without an exit code (reason {word})")
    reason = end.reason if end.reason not in ("", "Error", "Completed") else "ExitCode"
    said = case.pod.report.reason if case.pod.report else ""
    behind = f", the program says {said}" if said and said not in ("Running", "Completed") else ""
    return Judgement("Failure", reason, f"{_exit_words(end.code, reason)}{behind}")


def _exit_words(code: int, reason: str) -> str:
    """An exit code, with the signal that a shell and the runtime mean by one above 128."""
    try:
        word = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    # The runtime does not always say that it was the memory.
    unsaid = word == "SIGKILL" and reason == "ExitCode"
    why = ", which most often means that its memory was used up" if unsaid else ""
    return f"exit code {code} ({word}{why})"


TABLE: Final[Sequence[Callable[[Case], Judgement | None]]] = (
    _completed,
    _told,
    _marked,
    _kubelet,
    _untracked,
    _node,
    _full,
    _deleted,
    _unstarted,
    _preempted,
    _retryable,
    _failed,
)


def classify(case: Case) -> Judgement:
    """What the end of the case's pod means: the first row of the table that has an answer."""
    for row in TABLE:
        judgement = row(case)
        if judgement is not None:
            return judgement
    raise AssertionError("the table's last row always answers")


def unheard(peers: Sequence[str], since: int, renewals: Mapping[str, int]) -> list[str]:
    """The nodes that a non-zero exit must still wait for: they have not renewed their Leases after it.

    ``peers``: names of the gang's other nodes that are neither marked nor lost; ``renewals``: the resourceVersions of
    the Leases, and ``since``: the newest of them when they were first looked at. Versions and not times: a node's clock
    may be wrong, and a dead peer's that ran ahead would make its loss the program's failure.
    """
    return [node for node in peers if renewals.get(node, -1) <= since]


def undecided(judgement: Judgement, end: Exit | None, peers: Sequence[str]) -> bool:
    """Whether the judgement must wait for the Leases of the peers' nodes."""
    return judgement.cls == "Failure" and end is not None and bool(peers)
