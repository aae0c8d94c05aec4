"""Conditions of a SpotTrainingJob: set by type, with the time of the last change of status."""

from collections.abc import Sequence

from spot_training.api.model import Condition
from spot_training.api.times import format_time

MAX_MESSAGE = 4096


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((each for each in conditions if each.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether the condition is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"


def put(
    conditions: Sequence[Condition],
    type_: str,
    value: bool,
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> list[Condition]:
    """The conditions with this one set; its transition time is kept where the status stays the same."""
    status = "True" if value else "False"
    old = find(conditions, type_)
    made = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
        last_transition_time=old.last_transition_time if old and old.status == status else format_time(now),
        observed_generation=generation,
    )
    if old is None:
        return [*conditions, made]
    return [made if each.type == type_ else each for each in conditions]
