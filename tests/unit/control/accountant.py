"""An accountant who knows nothing of the operator: what machines were used for, from what happened on them.

Fractions, not decimals; pods and machines, not attempts; nothing of ``policies/cost.py``.
"""

from collections.abc import Iterable
from fractions import Fraction

from tests.unit.control.market import Usage


def spent(usages: Iterable[Usage], pools: str, now: float) -> Fraction:
    """What these pools' machines have cost up to now: seconds, times the price of one, times the part of its GPUs."""
    total = Fraction(0)
    for each in usages:
        if each.pool in pools:
            until = now if each.until is None else min(each.until, now)
            seconds = max(Fraction(0), Fraction(until) - Fraction(each.since))
            total += seconds * each.price * Fraction(each.gpus, each.of) / 3600
    return total
