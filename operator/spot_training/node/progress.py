"""How far the emptying of a node is. Pure: what is left and the time in, one of four words out.

A pod that has ended may leave a volume attached: one that only one node can have at a time keeps its successor waiting
until it is detached, and a machine that goes with volumes attached keeps them for six minutes more. So the node counts
as drained when its volumes are detached, too, as long as there is time to wait for it.
"""

from enum import Enum
from typing import Any, Final

from spot_training.api.names import DEADLINE_MARGIN_SECONDS

Json = dict[str, Any]

DETACH_SECONDS: Final = 360.0
"""Where there is no deadline: after so long the attach/detach controller takes a volume away by force."""


class Progress(Enum):
    """Pods are leaving; are leaving although the deadline has passed; have left; have left with their volumes."""

    DRAINING = "draining"
    LATE = "late"
    DETACHING = "detaching"
    DRAINED = "drained"


def attached(node: Json) -> int:
    """How many volumes the Node's status has as attached to it, or as in use by kubelet.

    Both lists are kept by Kubernetes itself, for CSI volumes too; so no right to read VolumeAttachments, which
    cannot be limited to one node, is needed.
    """
    status = node.get("status") or {}
    names = {volume["name"] for volume in status.get("volumesAttached") or []}
    return len(names | set(status.get("volumesInUse") or []))


def progress(
    before: Progress, pods: int, volumes: int | None, deadline: float | None, since: float, now: float
) -> Progress:
    """How far it is now. Times are seconds since the epoch.

    ``before``: what was said last; what has been drained once is not taken back for a volume. ``pods``: how many
    are still to leave. ``volumes``: how many are still to be detached, None where the Node was not read yet.
    ``since``: when the last pod was seen to have left, or now.
    """
    if pods:
        return Progress.LATE if deadline is not None and now > deadline else Progress.DRAINING
    if before is Progress.DRAINED or volumes == 0:
        return Progress.DRAINED
    end = since + DETACH_SECONDS if deadline is None else deadline - DEADLINE_MARGIN_SECONDS
    return Progress.DETACHING if now < end else Progress.DRAINED
