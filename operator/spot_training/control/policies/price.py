"""What a machine costs for an hour, and which ones cost more than a job wants to pay.

Whoever is nearest to the machine knows best: an annotation on the node, else the price file, else the pool's own
definition. Money is ``Decimal`` throughout.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from spot_training.api.model import DECIMAL
from spot_training.api.status import Terms
from spot_training.control.world import Node, Pool

MAX_AVOIDED: Final = 64
"""So many dearer nodes are named in a pod's affinity; a pool with more of them is better split."""

_FORM: Final = re.compile(DECIMAL)
_SMALLEST: Final = Decimal("0.000001")
_LARGEST: Final = Decimal("999999999.999999")


def read_price(text: str) -> Decimal:
    """The price that the text says. Raises ``ValueError`` with what is wrong with it."""
    if not _FORM.fullmatch(text):
        raise ValueError(
            f"{text[:32]!r} is no price: write a decimal number without a currency, such as '1.20'"
        )
    return Decimal(text)


def write_amount(amount: Decimal, rounding: str = ROUND_HALF_EVEN) -> str:
    """The amount as the status has it: at most six digits behind the point, no exponent, two digits at least.

    An amount past what the field can hold is written as the largest that it can.
    """
    made = min(amount, _LARGEST).quantize(_SMALLEST, rounding=rounding)
    text = f"{made:f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"{whole}.{part:0<2}"


def pool_price(pool: Pool, prices: Mapping[str, Decimal]) -> Decimal | None:
    """A node's price for an hour in the pool, or None where nobody said it; ``prices``: the price file."""
    said = prices.get(pool.name)
    if said is not None:
        return said
    own = pool.spec.price_per_node_hour
    if own is None and pool.spec.capacity_type == "OnDemand":
        own = pool.spec.on_demand_price_per_node_hour
    return Decimal(own) if own is not None else None


def node_price(node: Node, pool: Pool | None, prices: Mapping[str, Decimal]) -> Decimal | None:
    """What this very node costs for an hour, or None where nobody said it."""
    if node.price is not None:
        return node.price
    return pool_price(pool, prices) if pool is not None else None


def price_range(
    nodes: Iterable[Node], pool: Pool, prices: Mapping[str, Decimal]
) -> tuple[Decimal, Decimal] | None:
    """The lowest and the highest price of the pool's nodes for an hour; the pool's own where it has none. None where
    nobody said any.
    """
    every = list(nodes)
    said = [node.price for node in every if node.price is not None]
    usual = pool_price(pool, prices) if not every or len(said) < len(every) else None
    found = said if usual is None else [*said, usual]
    return (min(found), max(found)) if found else None


def ceiling_of(max_price: str | None) -> Decimal | None:
    """A job's own ``maxPricePerNodeHour``."""
    return Decimal(max_price) if max_price is not None else None


def agreed_ceiling(max_price: str | None, terms: Terms) -> Decimal | None:
    """What a node of an open attempt may cost for an hour: no more than the job's own ceiling, and than was agreed for
    on-demand machines.
    """
    own = ceiling_of(max_price)
    if terms.capacity_type != "OnDemand" or terms.price is None:
        return own
    agreed = Decimal(terms.price)
    return agreed if own is None else min(agreed, own)


def too_dear(price: Decimal | None, ceiling: Decimal | None) -> str | None:
    """Why a machine of that price is not for a job with that ceiling, or None where it is."""
    if ceiling is None:
        return None
    if price is None:
        return f"its price is not known, and maxPricePerNodeHour is {ceiling}: set pricePerNodeHour"
    if price > ceiling:
        return f"{price} for a node hour is more than maxPricePerNodeHour, {ceiling}"
    return None


def dearer_nodes(
    nodes: Iterable[Node], pool: Pool, prices: Mapping[str, Decimal], ceiling: Decimal | None
) -> list[str]:
    """Names of the nodes that cost more than the ceiling, or nobody knows what, sorted."""
    if ceiling is None:
        return []
    dear = [node.name for node in nodes if too_dear(node_price(node, pool, prices), ceiling)]
    return sorted(dear)


def read_price_file(data: Mapping[str, str]) -> tuple[dict[str, Decimal], dict[str, str]]:
    """The prices in a ConfigMap's data (by SpotPool: a node's for an hour), and what is wrong with its bad entries."""
    prices, troubles = {}, {}
    for pool, text in data.items():
        try:
            prices[pool] = read_price(text.strip())
        except ValueError as error:
            troubles[pool] = str(error)
    return prices, troubles
