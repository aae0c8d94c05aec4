"""Decides to stop an attempt, and tightens what was decided. Pure.

A stop is written before the first pod is deleted and cannot be taken back, also when the notice is: by then the
programs may have been told. Its deadline is the earliest of all marks on the gang's nodes, and only tightens.
"""

from spot_training.api.status import EndClass, Interruption, Stop
from spot_training.control.draft import Draft, moment
from spot_training.control.world import Notice, Pod

MAX_NOTICES = 64
MAX_MESSAGE = 1024


def notices_of(draft: Draft, pods: dict[int, Pod]) -> list[tuple[str, Notice]]:
    """The notices on the nodes of the gang's unfinished ranks, earliest first, with the nodes' names."""
    found: dict[str, Notice] = {}
    for ref in draft.current.nodes:
        node = draft.world.nodes.get(ref.name)
        if ref.index not in draft.current.completed and node and node.uid == ref.uid and node.notice:
            found[node.name] = node.notice
    for pod in pods.values():
        node = draft.node_of(pod)
        if pod.index not in draft.current.completed and node and node.notice and not pod.removed:
            found[node.name] = node.notice
    return sorted(found.items(), key=lambda item: (item[1].deadline or float("inf"), item[0]))


def _deadline(draft: Draft, node: str, notice: Notice, seen: float) -> float:
    """When the machine goes: as the notice says, else the pool's usual notice after it was first seen."""
    if notice.deadline is not None:
        return notice.deadline
    return (notice.noticed_at or notice.marked_at or seen) + draft.notice_seconds(node)


def stop_for_notices(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    """Stop the attempt because machines under it will be taken; ``notices``: earliest first, with node names."""
    name, notice = notices[0]
    deadline = min(_deadline(draft, on, each, draft.now) for on, each in notices)
    message = f"node {name} will be taken at {draft.stamp(deadline)} ({notice.source or 'unknown'} notice)"
    left = max(0, int(deadline - draft.now))
    draft.tell(
        "Reclaimed", f"Stopping attempt {draft.current.attempt}: {message}, {left} s left", type_="Warning"
    )
    stop_attempt(
        draft, "Reclaimed", "Disruption", message, deadline, [each.id for _, each in notices if each.id], name
    )


def tighten(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    """Notices that come after the stop: the deadline only tightens, and a nameless disruption gets its name."""
    stop = draft.current.stop
    if stop is None or not notices:
        return
    deadline = min(_deadline(draft, on, each, moment(stop.at) or draft.now) for on, each in notices)
    known = moment(stop.deadline)
    if known is not None:
        deadline = min(deadline, known)
    ids = [*stop.notice_ids, *(each.id for _, each in notices if each.id and each.id not in stop.notice_ids)][
        :MAX_NOTICES
    ]
    named = stop.cls == "Disruption" and stop.cause != "Reclaimed"
    made = stop.model_copy(update={"deadline": draft.stamp(deadline), "notice_ids": ids})
    if named:
        name, notice = notices[0]
        message = (
            f"node {name} will be taken at {draft.stamp(deadline)} ({notice.source or 'unknown'} notice)"
        )
        made = made.model_copy(update={"cause": "Reclaimed", "message": message})
    if made != stop:
        draft.set_current(stop=made)
        if named:
            draft.record(draft.current.attempt, reason="Reclaimed")
        _record_notice(draft, notices)


def stop_attempt(
    draft: Draft,
    cause: str,
    cls: EndClass | None,
    message: str,
    deadline: float | None = None,
    notice_ids: list[str] | None = None,
    node: str | None = None,
) -> None:
    """Write down the stop; ``cls`` None where the end is not judged yet. Begins the timeline's entry."""
    draft.set_current(
        stop=Stop(
            cause=cause,
            cls=cls,
            message=message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
            node=node,
            at=draft.stamp(),
            deadline=draft.stamp(deadline) if deadline is not None else None,
            notice_ids=(notice_ids or [])[:MAX_NOTICES],
        )
    )
    if cls in ("Disruption", "Failure", "Blocked", None):
        current = draft.current
        pool = draft.pool_on(node)
        draft.record_new(
            Interruption(
                attempt=current.attempt,
                reason=cause,
                node=node,
                lost_uid=_uid(draft, node) if cause == "NodeLost" else None,
                pool=pool,
                stopped_at=draft.stamp(),
            )
        )
        _record_notice(draft, notices_of(draft, draft.pods()))


def _uid(draft: Draft, name: str | None) -> str | None:
    """UID of the machine of that name that the attempt is on; nobody knows it where it was gone before it was seen."""
    known = next((ref.uid for ref in draft.current.nodes if ref.name == name), None)
    node = draft.world.nodes.get(name or "")
    return known or (node.uid if node is not None else None)


def _record_notice(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    if not notices:
        return
    name, notice = notices[0]
    draft.record(
        draft.current.attempt,
        node=name,
        notice_id=notice.id or None,
        noticed_at=draft.stamp(notice.noticed_at) if notice.noticed_at is not None else None,
        cordoned_at=draft.stamp(notice.marked_at) if notice.marked_at is not None else None,
        deadline=draft.stamp(notice.deadline) if notice.deadline is not None else None,
    )
