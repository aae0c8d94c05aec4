"""How long on-demand machines can be paid for, so that ``maxCost`` is held whoever is awake.

The money is reserved in the write that opens an attempt: what is left is shared out over its pods as seconds that
each may run. Every pod is made with a deadline of its own that kubelet keeps without anybody's help. Its seconds
shrink by the time since the attempt was opened, so that a pod that is made again after another of its rank has
come and gone unseen cannot run longer than both together may.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from typing import Final

HOUR: Final = Decimal(3600)

MARGIN_SECONDS: Final = 15
"""From a pod's deadline and grace to its containers' end: kubelet looks every second, then kills, then tells."""

LEAD_SECONDS: Final = 5
"""So long before kubelet would, the operator stops the gang as a whole, to be saved in order."""

USEFUL_SECONDS: Final = 120
"""An attempt that could run for less than this would be spent on starting."""


def share(gpus_per_pod: int, gpus_of_node: int) -> Decimal:
    """The part of a node that a pod is charged for: its GPUs of the node's. All of it, where none are counted."""
    if gpus_per_pod <= 0 or gpus_of_node <= 0:
        return Decimal(1)
    return min(Decimal(1), Decimal(gpus_per_pod) / Decimal(gpus_of_node))


@dataclass(frozen=True, slots=True)
class Offer:
    """On-demand machines that a job could have: ``rate`` is what one of its ``pods`` costs for an hour at the most,
    ``left`` what is left of its budget, ``grace`` its pods' in seconds.
    """

    pods: int
    rate: Decimal
    left: Decimal
    grace: int

    @property
    def seconds(self) -> int | None:
        """So long can each pod run, grace and all; None for ever: they cost nothing."""
        whole = self.pods * self.rate
        if whole <= 0:
            return None
        paid = max(Decimal(0), self.left) * HOUR / whole
        return int(min(paid, Decimal(2**31 - 1)).to_integral_value(rounding=ROUND_DOWN))

    @property
    def worth_it(self) -> bool:
        """Whether the pods would get to work before they must stop."""
        paid = self.seconds
        return paid is None or paid >= self.grace + MARGIN_SECONDS + USEFUL_SECONDS


def pod_deadline(budget_seconds: int, opened_at: float, grace: int, now: float) -> int:
    """``activeDeadlineSeconds`` of a pod that is made now; below 1 there is no money left to make it."""
    return budget_seconds - max(0, math.ceil(now - opened_at)) - grace - MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Meter:
    """A pod of an on-demand attempt: what it costs for an hour, since when it runs, until when it did, and when its
    kubelet ends it. None: not yet.
    """

    rate: Decimal
    start: float | None = None
    end: float | None = None
    deadline: float | None = None


def must_stop_at(meters: Iterable[Meter], left: Decimal, grace: int, now: float) -> float | None:
    """When the gang must be told to stop so that it can use its grace on what is ``left``; None: never.

    ``left``: at the attempt's opening, or now, if the user has changed the budget since. Pods that have not started
    count as if they started now.
    """
    every = list(meters)
    running = [each for each in every if each.end is None]
    rate = sum((each.rate for each in running), Decimal(0))
    deadlines = [each.deadline - LEAD_SECONDS for each in running if each.deadline is not None]
    if rate > 0:
        used = sum((each.rate * _seconds(each, now) for each in every), Decimal(0))
        paid = (left * HOUR - used) / rate - grace - MARGIN_SECONDS
        deadlines.append(now + float(max(Decimal(-(10**9)), min(paid, Decimal(10**9)))))
    return min(deadlines, default=None)


def _seconds(meter: Meter, now: float) -> Decimal:
    if meter.start is None:
        return Decimal(0)
    until = meter.end if meter.end is not None else now
    return Decimal(str(round(max(0.0, until - meter.start), 3)))
