"""Training that was lost with an attempt: what it had done since its last save. Pure.

An attempt whose pods have told of a save has lost what came after it; one whose pods have told of steps and of no
save, all that it did. A machine that dies silently tells nothing: what was lost with it is known when a later attempt
tells which checkpoint it went on from, and until then the attempt is in ``status.unsettled``.
"""

from spot_training.api.status import MAX_UNSETTLED, End, Unsettled
from spot_training.control.draft import Draft, moment
from spot_training.control.spending import enter_lost
from spot_training.control.world import Report


def note_report(draft: Draft, report: Report) -> None:
    """Take over what the newest attempt's pods tell of their checkpoints, before the status's own is changed."""
    _settle(draft, report)
    since = report.checkpoint_time
    if since is None and report.checkpoint_step is None and report.step is not None:
        since = moment(draft.current.running_at or draft.current.started_at)
    if since is not None:
        draft.set_current(unsaved_since=draft.stamp(since))


def count_lost(draft: Draft) -> None:
    """Count what the newest attempt, which has just ended and is in the bill, has lost; or that nobody knows it yet."""
    current, end = draft.current, draft.current.end
    began = moment(current.running_at or current.started_at)
    if end is None or end.cls == "Completed" or began is None:
        return
    until, since = _trained_until(draft, end), moment(current.unsaved_since)
    if since is not None:
        _add(draft, current.attempt, began, until, since)
    elif current.running_at is not None and draft.job.spec.checkpoint.writer == "Library":
        made = Unsettled(attempt=current.attempt, since=current.running_at, until=draft.stamp(until))
        draft.set(unsettled=[*draft.status.unsettled, made][-MAX_UNSETTLED:])


def _trained_until(draft: Draft, end: End) -> float:
    """When the first of the gang's unfinished ranks was gone: none trains without the others. That it took a while
    to find out is no training.
    """
    done, at = draft.current.completed, moment(end.at) or draft.now
    ends = [moment(ref.end) for ref in draft.current.nodes if ref.index not in done]
    return min([at, *(each for each in ends if each is not None)])


def _settle(draft: Draft, report: Report) -> None:
    """Count what earlier attempts lost that told nothing, as far as the report tells what was left of them."""
    if not draft.status.unsettled or report.resumed_step is None:
        return
    resumed = _resumed_from(draft, report)
    for each in draft.status.unsettled if resumed is not None else ():
        _add(draft, each.attempt, moment(each.since), moment(each.until), resumed)
    draft.set(unsettled=[])


def _resumed_from(draft: Draft, report: Report) -> float | None:
    """When the checkpoint was saved that the attempt has loaded; 0 where it began from scratch."""
    if report.resumed_time is not None:
        return report.resumed_time
    if report.resumed_step == 0:
        return 0.0
    if report.resumed_step == report.checkpoint_step:
        return report.checkpoint_time
    known = draft.status.checkpoint
    return moment(known.time) if known is not None and known.step == report.resumed_step else None


def _add(draft: Draft, attempt: int, began: float | None, until: float | None, saved: float | None) -> None:
    if began is None or until is None or saved is None:
        return
    lost = max(0, int(until - max(saved, began)))
    draft.set(lost_seconds=draft.status.lost_seconds + lost)
    enter_lost(draft, attempt, lost)
