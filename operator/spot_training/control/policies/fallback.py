"""When a job on on-demand machines goes back to spot ones: when that is cheaper, the interruption and all.

Moving costs the stop (on-demand, up to the grace), the start (on spot), and the work that is not saved, at what it
has cost: on-demand. Against it
stands what the work until the next reclamation is cheaper on spot. How long spot machines may be expected to stay
is estimated from the job's own history as (hours + 1) / (reclamations + 1), the usual estimate of a rate with one
event in one hour taken for granted, so that a job that has been taken from spot again and again needs more of a
reason to go back there than one that never was.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

STEADY_SECONDS: Final = 300.0
"""So long a spot pool must have had room, each time somebody looked, before it is trusted."""

LOOK_SECONDS: Final = 60.0
"""A job on on-demand machines looks so often whether a spot pool has room."""

LEAST_START_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Move:
    """A move of a gang: what it costs for an hour here and there, and the seconds to stop, to start, and of work
    that would be done again.
    """

    on_demand: Decimal
    spot: Decimal
    stop_seconds: float
    start_seconds: float
    lost_seconds: float


def expected_stay(spot_seconds: float, reclamations: int) -> float:
    """Seconds that spot machines may be expected to stay, by the job's own ``spot_seconds`` on them."""
    return (spot_seconds + 3600.0) / (reclamations + 1)


def lost_seconds(saves_when_told: bool, interval: int | None, ran: float) -> float:
    """Seconds of work that a stop throws away at the most.

    ``saves_when_told``: the library saves at a stop. Otherwise the periodic checkpoints' ``interval``, or all that
    the attempt has done so far.
    """
    if saves_when_told:
        return 0.0
    return min(ran, float(interval)) if interval is not None else ran


def saving(move: Move, stay: float) -> Decimal:
    """What is saved by moving, where the spot machines then stay for that many seconds; negative: it costs more.

    Staying here pays on-demand for ``stay`` seconds of work; moving pays the stop and the lost work here, then spot
    for the start and the same work.
    """
    here = move.on_demand * _decimal(stay)
    there = move.on_demand * _decimal(move.stop_seconds + move.lost_seconds) + move.spot * _decimal(
        max(move.start_seconds, LEAST_START_SECONDS) + stay
    )
    return (here - there) / 3600


def _decimal(seconds: float) -> Decimal:
    return Decimal(str(round(seconds, 3)))
