"""The agent's marks on its Node: the taint, the cordon, the annotations, the two conditions; and how to undo them.

Pure: the Node as it is now in, patches out; an empty patch where there is nothing to change. Taints are an
atomic list and other controllers write it, too, so every JSON Patch here carries the Node's resourceVersion: one that
was made from an older Node is refused with 409 and made anew. The cordon brings its own taint along: the node
controller, which would otherwise write it, comes to the last of many nodes half a minute later.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from spot_training.api import names
from spot_training.api.times import format_time, parse_time
from spot_training.node.notice import RECLAIM
from spot_training.node.progress import Progress

Json = dict[str, Any]

AGENT: Final = "spot.training/agent"
"""The value of ``cordoned-by`` where the node was schedulable before us. Without it the cordon is somebody else's."""

EFFECT: Final = "NoSchedule"
WARNING_EFFECT: Final = "PreferNoSchedule"
"""Of a notice that only warns: new pods go elsewhere if they can, and the operator stops nothing for it."""

CORDON: Final = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
"""The taint of every cordoned node, otherwise added and taken away by the node controller (TaintNodesByCondition)."""

ANNOTATIONS: Final = (
    names.NOTICE_ID,
    names.NOTICE_KIND,
    names.NOTICE_SOURCE,
    names.RECLAIM_DEADLINE,
    names.NOTICED_AT,
    names.CORDONED_BY,
    names.CORDONED_AT,
)


@dataclass(frozen=True, slots=True)
class Marks:
    """What the marks say. Times are seconds since the epoch by the API server's clock, None where unreadable.

    ``warns``: the node is tainted with ``PreferNoSchedule`` and not cordoned. A rebalance has no deadline.
    """

    notice_id: str
    kind: str
    source: str
    deadline: float | None
    noticed_at: float | None
    warns: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """A node condition as it should be."""

    type: str
    status: bool
    reason: str
    message: str


def read(node: Json) -> Marks | None:
    """The marks on a Node, also where somebody has damaged them; None where there are none."""
    annotations = node["metadata"].get("annotations") or {}
    taint = next((taint for taint in _taints(node) if taint["key"] == names.TAINT_RECLAIM), None)
    if taint is None and names.NOTICE_ID not in annotations:
        return None
    return Marks(
        notice_id=annotations.get(names.NOTICE_ID) or "unnamed",
        kind=annotations.get(names.NOTICE_KIND) or (taint or {}).get("value") or RECLAIM,
        source=annotations.get(names.NOTICE_SOURCE) or "unnamed",
        deadline=_time(annotations.get(names.RECLAIM_DEADLINE)),
        noticed_at=_time(annotations.get(names.NOTICED_AT)),
        warns=taint is not None and taint["effect"] == WARNING_EFFECT,
    )


def apply(node: Json, marks: Marks, now: float) -> list[Json]:
    """The JSON Patch that marks, taints and cordons the Node in one write; ``now`` is recorded the first time.

    Marks that only warn take our cordon away, where an earlier notice made one.
    """
    present = node["metadata"].get("annotations") or {}
    wanted = {
        names.NOTICE_ID: marks.notice_id,
        names.NOTICE_KIND: marks.kind,
        names.NOTICE_SOURCE: marks.source,
    }
    stale = set() if marks.deadline is not None else {names.RECLAIM_DEADLINE}
    if marks.deadline is not None:
        wanted[names.RECLAIM_DEADLINE] = format_time(marks.deadline)
    if marks.noticed_at is not None:
        wanted[names.NOTICED_AT] = format_time(marks.noticed_at)
    patch: list[Json] = []
    taints = _with_mark(_taints(node), marks.kind, WARNING_EFFECT if marks.warns else EFFECT)
    if marks.warns:
        patch = _uncordon(node)
        taints = _without_cordon(taints) if patch else taints
        stale |= {names.CORDONED_BY, names.CORDONED_AT}
    else:
        if names.CORDONED_AT not in present:
            wanted[names.CORDONED_AT] = format_time(now)
        if not node["spec"].get("unschedulable"):
            wanted[names.CORDONED_BY] = AGENT
            patch.append({"op": "add", "path": "/spec/unschedulable", "value": True})
            taints = taints if taints != _without_cordon(taints) else [*taints, CORDON]
    removed = [
        {"op": "remove", "path": _annotation(name)} for name in ANNOTATIONS if name in stale & set(present)
    ]
    return _tested(node, patch + _taint(node, taints) + removed + _annotate(node, wanted))


def undo(node: Json) -> list[Json]:
    """The JSON Patch that takes away what is ours, and nothing else: a foreign cordon stays."""
    annotations = node["metadata"].get("annotations") or {}
    patch = _uncordon(node)
    taints = [taint for taint in _taints(node) if taint["key"] != names.TAINT_RECLAIM]
    patch += _taint(node, _without_cordon(taints) if patch else taints)
    patch += [{"op": "remove", "path": _annotation(name)} for name in ANNOTATIONS if name in annotations]
    return _tested(node, patch)


SAID: Final = {
    Progress.DRAINING: (names.REASON_RECLAIMED, "pods are leaving the node"),
    Progress.LATE: ("DeadlinePassed", "pods are left on the node past the deadline"),
    Progress.DETACHING: ("VolumesAttached", "all pods have left the node, and volumes are being detached"),
    Progress.DRAINED: (names.REASON_RECLAIMED, "all pods have left the node"),
}
"""Reason and message of the two conditions."""


def draining(marks: Marks, progress: Progress) -> tuple[Condition, Condition]:
    """The two conditions while a notice stands."""
    until = "" if marks.deadline is None else f", due {format_time(marks.deadline)}"
    reason, message = SAID[progress]
    message += f" (notice {marks.notice_id}{until})"
    drained = progress is Progress.DRAINED
    return (
        Condition(names.CONDITION_DRAINING, not drained, reason, message),
        Condition(names.CONDITION_DRAINED, drained, reason, message),
    )


def progress(node: Json, marks: Marks) -> Progress:
    """How far a drain for these marks was, as an agent that was killed since has left it in the conditions."""
    return next(
        (step for step in Progress if condition_patch(node, draining(marks, step), 0.0) is None),
        Progress.DRAINING,
    )


def withdrawn(node: Json) -> tuple[Condition, ...]:
    """The two conditions where no notice stands: false, but only on a Node that has been drained before."""
    present = {condition["type"] for condition in _conditions(node)}
    message = "no reclamation is announced"
    return tuple(
        Condition(kind, False, "NoNotice", message)
        for kind in (names.CONDITION_DRAINING, names.CONDITION_DRAINED)
        if kind in present
    )


def condition_patch(node: Json, wanted: Iterable[Condition], now: float) -> Json | None:
    """The strategic merge patch of ``nodes/status`` that makes the conditions so; None where they are already."""
    present = {condition["type"]: condition for condition in _conditions(node)}
    changed = []
    for condition in wanted:
        old = present.get(condition.type) or {}
        status = "True" if condition.status else "False"
        said = (old.get("status"), old.get("reason"), old.get("message"))
        if said != (status, condition.reason, condition.message):
            changed.append(
                {
                    "type": condition.type,
                    "status": status,
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastHeartbeatTime": _second(now),
                    "lastTransitionTime": old["lastTransitionTime"]
                    if old.get("status") == status and old.get("lastTransitionTime")
                    else _second(now),
                }
            )
    return {"status": {"conditions": changed}} if changed else None


def _uncordon(node: Json) -> list[Json]:
    ours = (node["metadata"].get("annotations") or {}).get(names.CORDONED_BY) == AGENT
    return (
        [{"op": "remove", "path": "/spec/unschedulable"}]
        if ours and node["spec"].get("unschedulable")
        else []
    )


def _with_mark(taints: list[Json], kind: str, effect: str) -> list[Json]:
    """The taints with one of ours, of this effect, in the place of the first that is there."""
    mark = {"key": names.TAINT_RECLAIM, "value": kind, "effect": effect}
    result: list[Json] = []
    ours: Json | None = None
    for taint in taints:
        if taint["key"] != mark["key"]:
            result.append(taint)
        elif ours is None:
            ours = taint if (taint.get("value"), taint["effect"]) == (kind, effect) else mark
            result.append(ours)
    return result if ours else [*result, mark]


def _without_cordon(taints: list[Json]) -> list[Json]:
    cordon = CORDON["key"], CORDON["effect"]
    return [taint for taint in taints if (taint["key"], taint["effect"]) != cordon]


def _taint(node: Json, taints: list[Json]) -> list[Json]:
    """The whole list at once: the patch is bound to the Node from which it was made."""
    return [] if taints == _taints(node) else [{"op": "add", "path": "/spec/taints", "value": taints}]


def _annotate(node: Json, wanted: dict[str, str]) -> list[Json]:
    present = node["metadata"].get("annotations")
    if not present:
        return [{"op": "add", "path": "/metadata/annotations", "value": wanted}]
    return [
        {"op": "add", "path": _annotation(name), "value": value}
        for name, value in wanted.items()
        if present.get(name) != value
    ]


def _tested(node: Json, patch: list[Json]) -> list[Json]:
    """The patch, bound to this very state of this very Node: another version is a 409, not a silent overwrite."""
    if not patch:
        return []
    version = {
        "op": "replace",
        "path": "/metadata/resourceVersion",
        "value": node["metadata"]["resourceVersion"],
    }
    return [{"op": "test", "path": "/metadata/uid", "value": node["metadata"]["uid"]}, version, *patch]


def _annotation(name: str) -> str:
    return "/metadata/annotations/" + name.replace("~", "~0").replace("/", "~1")


def _taints(node: Json) -> list[Json]:
    return node["spec"].get("taints") or []


def _conditions(node: Json) -> list[Json]:
    return (node.get("status") or {}).get("conditions") or []


def _time(text: str | None) -> float | None:
    try:
        return None if text is None else parse_time(text)
    except ValueError:
        return None


def _second(seconds: float) -> str:
    """A metav1.Time: whole seconds."""
    return format_time(seconds).split(".")[0] + "Z"
