"""What a status write means to the counters. Pure: the status before and the status that was written decide.

Whatever is counted is counted in the write that sets it, so each thing is observed once, whoever writes it and
however often the job is looked at afterwards.
"""

from collections.abc import Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from spot_training.api.status import Current, Interruption, SpotTrainingJobStatus
from spot_training.control.conditions import find, is_true
from spot_training.control.draft import moment
from spot_training.control.policies.classify import DISRUPTION_REASONS, POD_STATUS_REASONS, RETRYABLE

DISRUPTIONS: Final[Set[str]] = frozenset(
    {
        *DISRUPTION_REASONS.values(),
        *POD_STATUS_REASONS.values(),
        "NodeRestarted",
        "PodDeleted",
        "PodGone",
        "Preempted",
        RETRYABLE,
    }
)
FAILURES: Final[Set[str]] = frozenset({"DeadlineExceeded", "ExitCode", "OOMKilled", "PodFailed"})
NOT_STARTED: Final[Set[str]] = frozenset(
    {
        "InitFailed",
        "NodeLeft",
        "PodRefused",
        "PodsRefused",
        "ProvisionTimeout",
        "SpecChanged",
        "StartError",
        "TemplateInvalid",
        "TooDear",
    }
)
OTHER: Final = "Other"
"""Runtimes, kubelets and whoever sets DisruptionTarget may bring words of their own; a label takes none of them."""


@dataclass(frozen=True, slots=True)
class Counted:
    """An attempt ended and counts here. ``reason`` is one of the closed table's of its class, or ``Other``."""

    cls: Literal["Disruption", "Failure", "NotStarted"]
    reason: str
    pool: str


@dataclass(frozen=True, slots=True)
class Opened:
    """An attempt was opened."""

    pool: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The gang runs as a whole again, so long after the interrupted attempt was told to stop.

    ``pool`` is that of the interrupted attempt.
    """

    pool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class MoneyRanOut:
    """What is left of a job's budget pays for no on-demand machines any more."""


@dataclass(frozen=True, slots=True)
class FellBack:
    """An attempt was opened on an on-demand pool, since no spot pool had room."""

    pool: str


@dataclass(frozen=True, slots=True)
class WentBack:
    """A job left the machines of an on-demand pool, since there was room on spot ones."""

    pool: str


@dataclass(frozen=True, slots=True)
class ClaimFilled:
    """An attempt found its checkpoint claim full."""


Observation = Counted | Opened | Recovered | MoneyRanOut | FellBack | WentBack | ClaimFilled


@dataclass(frozen=True, slots=True)
class Charge:
    """What a write adds to the job's bill, by the pool whose machines it is for."""

    pool: str
    capacity_type: str
    hours: float
    spent: float
    on_demand_equivalent: float
    lost_seconds: int


def charges(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> list[Charge]:
    """What the write of ``after`` over ``before`` charges: for the attempt's pool, and for the on-demand pool that
    ranks of it had apart; there an hour costs on demand what it costs.

    A machine that turns out to have died before it was last charged for is not paid back: a counter only grows, and
    is by that much above the status.
    """
    was = before.current
    current = was if was is not None and was.end is None else after.current
    if after.cost is None or current is None:
        return []
    hours, more_hours = _grown(before, after, "spot_hours"), _grown(before, after, "on_demand_hours")
    spent, more_spent = _grown(before, after, "spent"), _grown(before, after, "on_demand_spent")
    otherwise = _grown(before, after, "on_demand_equivalent")
    settled = _settled(before, after, current.attempt)
    lost = max(0, after.lost_seconds - before.lost_seconds - sum(each.lost_seconds for each in settled))
    kind = current.terms.capacity_type if current.terms is not None else "Spot"
    if current.on_demand is None:
        found = [Charge(current.pool, kind, *_floats(hours + more_hours, spent, otherwise), lost)]
    else:
        rest = Charge(current.pool, kind, *_floats(hours, spent - more_spent, otherwise - more_spent), lost)
        apart = Charge(current.on_demand.pool, "OnDemand", *_floats(more_hours, more_spent, more_spent), 0)
        found = [rest, apart]
    return [each for each in [*found, *settled] if each.hours or each.lost_seconds]


def _settled(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus, newest: int) -> list[Charge]:
    """What turned out to have been lost with earlier attempts, where they were."""
    cost_before = before.cost.attempts if before.cost is not None else []
    was = {(each.attempt, each.pool): each.lost_seconds for each in cost_before}
    found = []
    for each in after.cost.attempts if after.cost is not None else ():
        more = each.lost_seconds - was.get((each.attempt, each.pool), each.lost_seconds)
        if each.attempt != newest and more > 0:
            found.append(Charge(each.pool, each.capacity_type, 0.0, 0.0, 0.0, more))
    return found


def _grown(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus, name: str) -> Decimal:
    was = Decimal(getattr(before.cost, name)) if before.cost is not None else Decimal(0)
    return Decimal(getattr(after.cost, name)) - was


def _floats(hours: Decimal, spent: Decimal, otherwise: Decimal) -> tuple[float, float, float]:
    return max(0.0, float(hours)), max(0.0, float(spent)), max(0.0, float(otherwise))


def observations(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> list[Observation]:
    """What the write of ``after`` over ``before`` is to be counted as."""
    found: list[Observation] = []
    ended = before.current
    if ended is not None and after.disruptions > before.disruptions:
        reason = _known(_reason(after, ended.attempt), DISRUPTIONS)
        found.append(Counted("Disruption", reason, _pool(after, ended)))
    if ended is not None and after.failures > before.failures:
        reason = _known(_reason(after, ended.attempt), FAILURES)
        found.append(Counted("Failure", reason, _pool(after, ended)))
    if ended is not None and ended.end is None and (why := _unstarted(ended, after)) is not None:
        found.append(Counted("NotStarted", _known(why, NOT_STARTED), ended.pool))
    opened = after.current
    if opened is not None and opened.attempt > (ended.attempt if ended else 0):
        found.append(Opened(opened.pool))
        if opened.terms is not None and opened.terms.capacity_type == "OnDemand":
            found.append(FellBack(opened.pool))
    if is_true(after.conditions, "BudgetExhausted") and not is_true(before.conditions, "BudgetExhausted"):
        found.append(MoneyRanOut())
    if opened is not None and _stopped_for(after) == "BackToSpot" != _stopped_for(before):
        found.append(WentBack(opened.pool))
    if after.full_claim is not None and after.full_claim != before.full_claim:
        found.append(ClaimFilled())
    back = {each.attempt for each in before.timeline if each.resumed_at is not None}
    for entry in after.timeline:
        seconds = _recovery(entry, after) if entry.attempt not in back else None
        if seconds is not None:
            found.append(Recovered(entry.pool or "", seconds))
    return found


def _stopped_for(status: SpotTrainingJobStatus) -> str:
    stop = status.current.stop if status.current is not None else None
    return stop.cause if stop is not None else ""


def _reason(after: SpotTrainingJobStatus, attempt: int) -> str:
    """Why the attempt ended. The write that ends it may open the next one, so its ``end`` may be gone already."""
    return next((entry.reason for entry in after.timeline if entry.attempt == attempt), "")


def _pool(after: SpotTrainingJobStatus, ended: Current) -> str:
    """The pool of the node that ended the attempt, where ranks of it had a pool apart; else the attempt's."""
    return (
        next((entry.pool for entry in after.timeline if entry.attempt == ended.attempt), None) or ended.pool
    )


def _unstarted(ended: Current, after: SpotTrainingJobStatus) -> str | None:
    """Why the attempt that was open did not come to run, if it has ended so; the next may be open already."""
    now = after.current
    if now is not None and now.attempt == ended.attempt:
        return now.end.reason if now.end is not None and now.end.cls == "NotStarted" else None
    return ended.stop.cause if ended.stop is not None and ended.stop.cls == "NotStarted" else None


def _known(reason: str, table: Set[str]) -> str:
    return reason if reason in table else OTHER


def _recovery(entry: Interruption, after: SpotTrainingJobStatus) -> float | None:
    """Seconds from stop to the whole gang running; None where it is not, or where the user held it back meanwhile."""
    stopped, resumed = moment(entry.stopped_at), moment(entry.resumed_at)
    if stopped is None or resumed is None or entry.reason == "ClaimFull":
        # How long somebody takes to make room says nothing of how soon a pool has machines again.
        return None
    held = find(after.conditions, "Suspended")
    if held is not None and (moment(held.last_transition_time) or 0.0) > stopped:
        return None
    # The kubelets' times are whole seconds, cut off.
    return max(0.0, resumed - stopped)
