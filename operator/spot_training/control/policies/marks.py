"""Which marks on a node are a notice that it will be taken, ours and those of other systems.

Ours is the taint ``spot.training/reclaim`` with annotations beside it. Others' taints are notices too, without
a deadline: Karpenter's (karpenter.sh, "disrupted taint"), Cluster Autoscaler's (``ToBeDeletedByClusterAutoscaler``),
GKE's (``cloud.google.com/impending-node-termination``), aws-node-termination-handler's, and the shutdown taint that
the clouds' node controllers set.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from spot_training.api import names
from spot_training.api.times import parse_time
from spot_training.control.world import Notice, Taint

FOREIGN_MARKS: Final[Mapping[str, str]] = {
    "karpenter.sh/disrupted": "Karpenter",
    "ToBeDeletedByClusterAutoscaler": "ClusterAutoscaler",
    "cloud.google.com/impending-node-termination": "GKE",
    "aws-node-termination-handler/spot-itn": "NodeTerminationHandler",
    "aws-node-termination-handler/scheduled-maintenance": "NodeTerminationHandler",
    "aws-node-termination-handler/asg-lifecycle-termination": "NodeTerminationHandler",
    "node.cloudprovider.kubernetes.io/shutdown": "CloudShutdown",
}

GONE_TAINTS: Final = frozenset(
    {"node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"}
)
"""Taints that prove the machine is down: the first is set by people or controllers that have verified it."""

MAX_WORD: Final = 256
"""An annotation can be longer than a word in a job's status."""

EVICTING_EFFECTS: Final = frozenset({"NoSchedule", "NoExecute"})


def read_notice(
    taints: Sequence[Taint], annotations: Mapping[str, str], added: Mapping[str, float]
) -> Notice | None:
    """The notice that the marks of a node stand for, or None.

    ``added``: when a taint was added, by key, where the taint says so. ``PreferNoSchedule`` only warns: nothing
    is stopped for it. An annotation that cannot be read counts as absent.
    """
    for taint in taints:
        if taint.effect not in EVICTING_EFFECTS:
            continue
        if taint.key == names.TAINT_RECLAIM:
            return Notice(
                kind=taint.value or "reclaim",
                id=annotations.get(names.NOTICE_ID, "")[:MAX_WORD],
                source=annotations.get(names.NOTICE_SOURCE, "")[:MAX_WORD],
                deadline=_time(annotations.get(names.RECLAIM_DEADLINE)),
                noticed_at=_time(annotations.get(names.NOTICED_AT)),
                marked_at=_time(annotations.get(names.CORDONED_AT)) or added.get(taint.key),
            )
    for taint in taints:
        source = FOREIGN_MARKS.get(taint.key)
        if source and taint.effect in EVICTING_EFFECTS:
            return Notice(kind="terminate", id=taint.key, source=source, marked_at=added.get(taint.key))
    return None


def _time(text: str | None) -> float | None:
    try:
        return parse_time(text) if text else None
    except ValueError:
        return None
