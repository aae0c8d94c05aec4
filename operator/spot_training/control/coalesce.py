"""Which status writes may wait a moment, so that a gang which starts or stops is told in few of them. Pure.

A pod that becomes ready or goes changes READY and a message, and five in a row are one line that somebody reads. What
decides anything, or is told in an Event, is written at once.
"""

from typing import Final

from spot_training.api.status import Current, SpotTrainingJobStatus
from spot_training.control.world import Pod

WAIT_SECONDS: Final = 1.0
"""Progress is written so long after the job's last write; what nobody wrote of for longer is written at once."""

BUSY_WAIT_SECONDS: Final = 5.0
"""So long while many jobs wait to be looked at: a status costs the API server as much as several pods."""

MANY: Final = 64


def wait_seconds(waiting: int) -> float:
    """How long after a job's last write its progress waits, while so many jobs wait to be looked at."""
    return BUSY_WAIT_SECONDS if waiting > MANY else WAIT_SECONDS


def may_wait(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> bool:
    """Whether the two differ in nothing but READY, the words of conditions, the bill and which machines are used.

    Where a budget pays for a machine, which one it is counts from the first moment on: that waits for nothing.
    """
    if after.current is None or before.current is None or _is_paid(after.current):
        return False
    current = after.current.model_copy(update={"nodes": before.current.nodes})
    passing = {"ready": before.ready, "cost": before.cost, "conditions": before.conditions}
    kept = after.model_copy(update={**passing, "current": current})
    return kept == before and _held(before) == _held(after)


def is_progress(before: Pod | None, after: Pod, current: Current | None) -> bool:
    """Whether a pod that changed so, of the job's newest attempt, is merely a step nearer to running.

    It is told when there is time for that. What ends or may end a pod, or lets it out of a queue, decides something.
    """
    ending = after.ended or after.deleting or after.removed or after.disruption or after.exit is not None
    released = before is not None and before.gated != after.gated
    return not (ending or released or current is None or _is_paid(current))


def _is_paid(current: Current) -> bool:
    terms = (current.terms, current.on_demand.terms if current.on_demand is not None else None)
    return any(each is not None and each.budget_seconds is not None for each in terms)


def _held(status: SpotTrainingJobStatus) -> set[tuple[str, str]]:
    return {(each.type, each.status) for each in status.conditions}
