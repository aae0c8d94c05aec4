"""What the agent keeps of a pod: the few facts that a drain decides by. A whole pod is ten kilobytes of JSON."""

from dataclasses import dataclass
from typing import Any, Final

from spot_training.api import names
from spot_training.api.times import parse_time

Json = dict[str, Any]

MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
DEFAULT_GRACE_SECONDS: Final = 30
"""What the API server sets where a pod does not say."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod on this node.

    ``grace``: its own termination grace in seconds. ``stays``: a DaemonSet's or a static pod's mirror, which
    the node keeps to its end. ``ended``: no container of it can run any more. ``kill_at``: seconds since the epoch
    at which a pod that is being deleted is killed. ``disrupted``: bears DisruptionTarget already. ``local_data``:
    has an emptyDir on the node's disk, which is lost with it. ``volumes``: how many it has that are its very own
    (generic ephemeral volumes), and so attached to this node as long as it is there.
    """

    namespace: str
    name: str
    uid: str
    job: bool = False
    priority: int = 0
    grace: int = DEFAULT_GRACE_SECONDS
    stays: bool = False
    ended: bool = False
    kill_at: float | None = None
    disrupted: bool = False
    local_data: bool = False
    volumes: int = 0


def read(pod: Json) -> Pod:
    """The facts of one pod as the API server gives it."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    owners = metadata.get("ownerReferences") or []
    deletion = metadata.get("deletionTimestamp")
    grace = spec.get("terminationGracePeriodSeconds")
    volumes = spec.get("volumes") or []
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        job=names.LABEL_JOB in (metadata.get("labels") or {}),
        priority=spec.get("priority") or 0,
        grace=DEFAULT_GRACE_SECONDS if grace is None else grace,
        stays=MIRROR_ANNOTATION in (metadata.get("annotations") or {})
        or any(owner.get("controller") and owner.get("kind") == "DaemonSet" for owner in owners),
        ended=status.get("phase") in ("Succeeded", "Failed")
        or (deletion is not None and _stopped(spec, status)),
        kill_at=None if deletion is None else parse_time(deletion),
        disrupted=any(
            condition.get("type") == names.DISRUPTION_TARGET and condition.get("status") == "True"
            for condition in status.get("conditions") or []
        ),
        local_data=any("emptyDir" in volume and not _in_memory(volume) for volume in volumes),
        volumes=sum("ephemeral" in volume for volume in volumes),
    )


def _in_memory(volume: Json) -> bool:
    """Whether an emptyDir is shared memory, or huge pages: nobody keeps data there."""
    return bool((volume["emptyDir"] or {}).get("medium"))


def _stopped(spec: Json, status: Json) -> bool:
    """Whether every container has a final state; those of a pod that never started have none to wait for."""
    states = [container.get("state") or {} for container in status.get("containerStatuses") or []]
    return len(states) == len(spec.get("containers") or []) and all("terminated" in state for state in states)
