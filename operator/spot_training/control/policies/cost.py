"""What an attempt's machines cost: the pod's time, times its node's price, times its GPUs / the node's GPUs.

What a node costs while no pod of the job is on it (an autoscaler's idle time) is outside. A pod on a machine that
vanished is paid for up to its last sign of life.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from spot_training.api.status import Bill, Terms
from spot_training.control.policies.budget import HOUR, share
from spot_training.control.policies.price import write_amount

ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Used:
    """A rank's use of a machine: its price for an hour (None: not known), its GPUs, and the seconds it was used."""

    index: int
    node: str
    price: Decimal | None
    gpus: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sums:
    """A :class:`Bill` to reckon with."""

    spot_hours: Decimal = ZERO
    on_demand_hours: Decimal = ZERO
    spent: Decimal = ZERO
    on_demand_spent: Decimal = ZERO
    on_demand_equivalent: Decimal = ZERO
    unpriced_hours: Decimal = ZERO

    @classmethod
    def of(cls, bill: Bill) -> "Sums":
        """The sums that a status holds."""
        return cls(*(Decimal(getattr(bill, each.name) or 0) for each in fields(cls)))

    def plus(self, other: "Sums") -> "Sums":
        """Both together."""
        return Sums(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def bill(self) -> dict[str, str | None]:
        """The fields of a :class:`Bill`."""
        made: dict[str, str | None] = {
            each.name: write_amount(getattr(self, each.name)) for each in fields(self)
        }
        made["unpriced_hours"] = made["unpriced_hours"] if self.unpriced_hours else None
        return made

    def saved_percent(self) -> int | None:
        """By how much less was paid than on demand, in whole percent, rounded down; None where nothing was priced."""
        if self.on_demand_equivalent <= 0:
            return None
        part = (self.on_demand_equivalent - self.spent) / self.on_demand_equivalent
        return int((part * 100).to_integral_value(rounding=ROUND_FLOOR))


def hours(used: Used, terms: Terms) -> Decimal:
    """Node hours: the time, times the pod's part of the node."""
    return Decimal(str(round(used.seconds, 3))) / HOUR * share(terms.gpus_per_pod, used.gpus)


def cost(every: Iterable[Used], terms: Terms) -> Sums:
    """What the machines of one attempt cost.

    Where nobody said what a pool's machines cost on demand, its hours count as if nothing was saved.
    """
    total = Sums()
    for used in every:
        time = hours(used, terms)
        spot = terms.capacity_type == "Spot"
        spent = time * used.price if used.price is not None else ZERO
        otherwise = Decimal(terms.on_demand_price) if spot and terms.on_demand_price else used.price
        total = total.plus(
            Sums(
                spot_hours=time if spot else ZERO,
                on_demand_hours=ZERO if spot else time,
                spent=spent,
                on_demand_spent=ZERO if spot else spent,
                on_demand_equivalent=time * (otherwise or ZERO) if used.price is not None else ZERO,
                unpriced_hours=time if used.price is None else ZERO,
            )
        )
    return total
