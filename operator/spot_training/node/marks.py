"""The agent's marks on its Node: the taint, the cordon, the annotations, the two conditions; and how to undo them.

Pure: the Node as it is now in, patches out; an empty patch where there is nothing to change. Taints are an
atomic list and the cordon makes the node controller write to it at that very instant, so every JSON Patch here
carries the Node's resourceVersion: one that was made from an older Node is refused with 409 and made anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from spot_training.api import names
from spot_training.api.times import format_time, parse_time
from spot_training.node.notice import RECLAIM

Json = dict[str, Any]

AGENT: Final = "spot.training/agent"
"""The value of ``cordoned-by`` where the node was schedulable before us. Without it the cordon is somebody else's."""

EFFECT: Final = "NoSchedule"

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
    """What the marks say. Times are seconds since the epoch by the API server's clock, None where unreadable."""

    notice_id: str
    kind: str
    source: str
    deadline: float | None
    noticed_at: float | None


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
    )


def apply(node: Json, marks: Marks, now: float) -> list[Json]:
    """The JSON Patch that marks, taints and cordons the Node in one write; ``now`` is recorded the first time."""
    wanted = {
        names.NOTICE_ID: marks.notice_id,
        names.NOTICE_KIND: marks.kind,
        names.NOTICE_SOURCE: marks.source,
    }
    if marks.deadline is not None:
        wanted[names.RECLAIM_DEADLINE] = format_time(marks.deadline)
    if marks.noticed_at is not None:
        wanted[names.NOTICED_AT] = format_time(marks.noticed_at)
    if names.CORDONED_AT not in (node["metadata"].get("annotations") or {}):
        wanted[names.CORDONED_AT] = format_time(now)
    patch: list[Json] = []
    if not node["spec"].get("unschedulable"):
        wanted[names.CORDONED_BY] = AGENT
        patch.append({"op": "add", "path": "/spec/unschedulable", "value": True})
    return _tested(node, patch + _add_taint(node, marks.kind) + _annotate(node, wanted))


def undo(node: Json) -> list[Json]:
    """The JSON Patch that takes away what is ours, and nothing else: a foreign cordon stays."""
    annotations = node["metadata"].get("annotations") or {}
    patch: list[Json] = []
    if annotations.get(names.CORDONED_BY) == AGENT and node["spec"].get("unschedulable"):
        patch.append({"op": "remove", "path": "/spec/unschedulable"})
    ours = [index for index, taint in enumerate(_taints(node)) if taint["key"] == names.TAINT_RECLAIM]
    # From the end, so that each index still means what it meant.
    patch += [{"op": "remove", "path": f"/spec/taints/{index}"} for index in reversed(ours)]
    patch += [{"op": "remove", "path": _annotation(name)} for name in ANNOTATIONS if name in annotations]
    return _tested(node, patch)


def draining(marks: Marks, drained: bool) -> tuple[Condition, Condition]:
    """The two conditions while a notice stands."""
    until = "" if marks.deadline is None else f", due {format_time(marks.deadline)}"
    reason = names.REASON_RECLAIMED
    if drained:
        message = f"all pods have left the node (notice {marks.notice_id}{until})"
        return (
            Condition(names.CONDITION_DRAINING, False, reason, message),
            Condition(names.CONDITION_DRAINED, True, reason, message),
        )
    message = f"pods are leaving the node (notice {marks.notice_id}{until})"
    return (
        Condition(names.CONDITION_DRAINING, True, reason, message),
        Condition(names.CONDITION_DRAINED, False, reason, message),
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


def _add_taint(node: Json, kind: str) -> list[Json]:
    taint = {"key": names.TAINT_RECLAIM, "value": kind, "effect": EFFECT}
    taints = _taints(node)
    if not taints:
        return [{"op": "add", "path": "/spec/taints", "value": [taint]}]
    for index, present in enumerate(taints):
        if present["key"] == taint["key"] and present["effect"] == EFFECT:
            same = present.get("value") == kind
            return [] if same else [{"op": "replace", "path": f"/spec/taints/{index}", "value": taint}]
    return [{"op": "add", "path": "/spec/taints/-", "value": taint}]


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
