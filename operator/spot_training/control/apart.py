"""Ranks that run on on-demand machines while the others are on spot ones, as ``onDemand.ranks`` names them. Pure.

What they cost is reserved and held just as for a gang that is on on-demand machines as a whole. Once the budget does
not pay for them any more, they run on spot machines with the others.
"""

from collections.abc import Sequence
from decimal import Decimal

from spot_training.api.status import OnDemandRanks
from spot_training.control import conditions, paying
from spot_training.control.claims import needs_one_node
from spot_training.control.draft import Draft
from spot_training.control.policies.demand import Apart, Choice
from spot_training.control.policies.price import write_amount
from spot_training.control.world import Pool


def wanted(draft: Draft) -> Apart | None:
    """The part of the gang that goes apart; None where the job names no ranks, or its budget does not pay for them."""
    ranks = draft.job.spec.on_demand.ranks
    if not ranks:
        return None
    refused = _refused(draft, len(ranks))
    return None if _exhausted(draft, refused) else Apart(len(ranks), _named(ranks), refused)


def _refused(draft: Draft, pods: int) -> dict[str, tuple[str, str]]:
    """On-demand pools that are not for the ranks at this price."""
    found = {}
    for pool in _pools(draft):
        why = paying.too_dear_there(draft, pool) or paying.unpaid(draft, pool, pods)
        if why is not None:
            found[pool.name] = why
    return found


def _pools(draft: Draft) -> list[Pool]:
    pools = draft.world.pools
    known = [pools[name] for name in draft.job.spec.pools or pools if name in pools]
    return [pool for pool in known if pool.spec.capacity_type == "OnDemand"]


def _exhausted(draft: Draft, refused: dict[str, tuple[str, str]]) -> str:
    """Why the budget pays for the ranks on no on-demand pool, or an empty string."""
    if any(pool.name not in refused for pool in _pools(draft)):
        return ""
    words = (f"{name}: {why}" for name, (word, why) in refused.items() if word == "BudgetExhausted")
    return next(words, "")


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"


def trouble(draft: Draft) -> tuple[str, str] | None:
    """Why the named ranks can never be on another node than the others: a reason and what to do."""
    ranks = draft.job.spec.on_demand.ranks
    if not ranks or not needs_one_node(draft.job, draft.world):
        return None
    return (
        "ClaimNotShareable",
        f"onDemand.ranks: {_named(ranks)} and the others would be on different nodes, and the job mounts a claim that "
        "is not ReadWriteMany; use one that is, or name no ranks",
    )


def opened(draft: Draft, choice: Choice) -> OnDemandRanks | None:
    """What is recorded of the ranks in the write that opens an attempt; None where they are with the others."""
    ranks, pool = draft.job.spec.on_demand.ranks, draft.world.pools.get(choice.beside)
    if not ranks or pool is None:
        return None
    return OnDemandRanks(ranks=sorted(ranks), pool=pool.name, terms=paying.terms(draft, pool, len(ranks)))


def announce(draft: Draft) -> None:
    """Say, before there is a pod, which ranks of the attempt that is being opened use on-demand machines, and for how
    much; or that the budget does not pay for them any more.
    """
    spec, current = draft.job.spec, draft.current
    if current.on_demand is not None:
        made = current.on_demand
        left = write_amount(max(paying.left(draft), Decimal(0)))
        seconds = made.terms.budget_seconds
        until = f"for {seconds} s at the most" if seconds is not None else "at no cost"
        message = (
            f"attempt {current.attempt} has {_named(made.ranks)} on on-demand pool {made.pool}, at "
            f"{made.terms.pod_price} each for an hour {until} ({left} left of "
            f"onDemand.maxCost {spec.on_demand.max_cost}), and the others on spot pool {current.pool}"
        )
        draft.condition("OnDemand", True, "Ranks", message)
        draft.tell("OnDemandRanks", f"{message[0].upper()}{message[1:]}")
        if conditions.find(draft.status.conditions, "BudgetExhausted"):
            draft.condition("BudgetExhausted", False, "BudgetLeft", message)
    elif current.terms is not None and current.terms.capacity_type == "Spot" and (why := note_unpaid(draft)):
        draft.condition("OnDemand", False, "BudgetExhausted", why)
        draft.tell("RanksOnSpot", f"Attempt {current.attempt} has {why}", type_="Warning")


def note_unpaid(draft: Draft) -> str:
    """Say that the budget does not pay for the named ranks, and return it; an empty string where it does."""
    ranks = draft.job.spec.on_demand.ranks
    why = _exhausted(draft, _refused(draft, len(ranks))) if ranks else ""
    if not ranks or not why:
        return ""
    message = f"{_named(ranks)} on spot machines with the others; {why}"
    if not conditions.is_true(draft.status.conditions, "BudgetExhausted"):
        draft.tell("BudgetExhausted", message, type_="Warning")
    draft.condition("BudgetExhausted", True, "BudgetExhausted", message)
    return message
