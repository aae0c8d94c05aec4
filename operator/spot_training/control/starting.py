"""Why an attempt that has been opened does not run yet, and what can be done about it. Pure.

What keeps a pod from starting is not the program's failure: it is said in a condition, the attempt gives its pods
back when ``provisionTimeoutSeconds`` have passed, and the next one comes later each time.
"""

from collections.abc import Mapping
from typing import Final

from spot_training.control import conditions, kueue
from spot_training.control.claims import modes_of
from spot_training.control.draft import Draft
from spot_training.control.world import Ask, Pod

EVENTS_AFTER_SECONDS: Final = 45.0
"""A pod that is bound and silent for so long has Events that say why: volumes and sandboxes show nowhere else."""

EVENTS_AGAIN_SECONDS: Final = 60.0

QUEUED: Final = "Queued"

_IMAGE: Final = (
    "ImagePullFailed",
    "look at the image's name and tag, at the registry and at imagePullSecrets",
)
_CONFIG: Final = ("ContainerConfigFailed", "make the Secret, ConfigMap or key that the template names")
_START: Final = (
    "ContainerStartFailed",
    "look at the container's command, and at the GPU driver and the device plugin of its node",
)
_VOLUME: Final = (
    "VolumeMountFailed",
    "look at the claim and its volume, and at the Secrets and ConfigMaps that the template mounts",
)
_SANDBOX: Final = ("SandboxFailed", "look at the node's network plugin, container runtime and RuntimeClass")

TROUBLES: Final[Mapping[str, tuple[str, str]]] = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "InvalidImageName": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "ImageInspectError": _IMAGE,
    "RegistryUnavailable": _IMAGE,
    "SignatureValidationFailed": _IMAGE,
    "CreateContainerConfigError": _CONFIG,
    "CreateContainerError": _START,
    "RunContainerError": _START,
    "FailedMount": _VOLUME,
    "FailedAttachVolume": _VOLUME,
    "FailedMapVolume": _VOLUME,
    "FailedCreatePodSandBox": _SANDBOX,
    "SchedulingGated": (QUEUED, "the queue, or whoever set the gate, lets it go on"),
    "Unschedulable": ("Unschedulable", "the scheduler tries again as nodes and pods change"),
}
"""By the first word of what scheduler, kubelet or an Event says: our reason, and what to do."""

START_TROUBLES: Final = frozenset(reason for reason, _ in TROUBLES.values()) - {QUEUED}
"""What an edit of the job may have mended. Who waits in a queue keeps his place."""


def starting(draft: Draft) -> tuple[str, str]:
    """The reason for the condition, and a sentence; ``Starting`` and nothing while all is well."""
    obstacle = draft.world.obstacle
    if obstacle:
        _tell_once(draft, "CreateFailed", obstacle)
        return "Starting", obstacle
    for index, pod in sorted(draft.pods().items()):
        if pod.removed or pod.started_at is not None or pod.ended:
            continue
        said = pod.trouble or _events(draft, pod)
        if said:
            reason, advice = TROUBLES.get(said.partition(":")[0], ("Starting", ""))
            message = f"rank {index}: {said}" + (f"; {advice}" if advice else "")
            if reason == QUEUED and draft.current.queue:
                workload = kueue.group(draft.job, draft.current.attempt)
                message = (
                    f"waiting in Kueue's queue {draft.current.queue}: `kubectl -n {draft.job.namespace} describe "
                    f"workload {workload}` says for what; {message}"
                )
            if reason not in ("Starting", "Unschedulable"):
                _tell_once(draft, reason, message)
            return reason, message
        attached = _attached_elsewhere(draft, pod)
        if attached:
            return "VolumeDetaching", f"rank {index}: {attached}"
    return "Starting", ""


def _tell_once(draft: Draft, reason: str, message: str) -> None:
    told = conditions.find(draft.status.conditions, "Running")
    if told is None or (told.reason != reason and message not in told.message):
        draft.tell(reason, message, type_="Warning")


def _events(draft: Draft, pod: Pod) -> str:
    """What the pod's Events say, once it has been bound and silent for long."""
    if not pod.node:
        return ""
    due = pod.created + EVENTS_AFTER_SECONDS
    if draft.now < due:
        draft.wake(due)
        return ""
    if draft.world.events is None:
        draft.asks.add(Ask.EVENTS)
        return ""
    draft.wake(draft.now + EVENTS_AGAIN_SECONDS)
    return draft.world.events.get(pod.uid, "")


def _attached_elsewhere(draft: Draft, pod: Pod) -> str:
    """Where the volume of a ReadWriteOnce claim was before, if the pod is bound to another node now."""
    if not pod.node or "ReadWriteMany" in modes_of(draft.job, draft.world):
        return ""
    before = [each for each in draft.world.pods if each.attempt < draft.current.attempt and each.node]
    last = max(before, key=lambda each: each.attempt, default=None)
    node = last.node if last else draft.status.timeline[-1].node if draft.status.timeline else None
    if node is None or node == pod.node:
        return ""
    return (
        f"claim {draft.job.claim} is ReadWriteOnce: its volume goes from node {node} to {pod.node}, which takes about "
        "6 minutes where the old node does not answer, and less once that has the taint "
        "node.kubernetes.io/out-of-service"
    )
