"""What on-demand machines would cost a job, and whether its budget pays for them. Pure."""

from collections.abc import Collection
from decimal import Decimal

from spot_training.api.status import Terms
from spot_training.control.draft import Draft
from spot_training.control.pods import grace_seconds
from spot_training.control.policies.budget import Offer, share
from spot_training.control.policies.needs import gpus_per_pod
from spot_training.control.policies.price import (
    ceiling_of,
    node_price,
    pool_price,
    too_dear,
    write_amount,
)
from spot_training.control.spending import bill_of_ended
from spot_training.control.world import Node, Pool


def too_dear_there(draft: Draft, pool: Pool) -> tuple[str, str] | None:
    """Why every machine of the pool costs more than the job wants to pay, or None where not."""
    dear = too_dear(pool_price(pool, draft.world.prices), ceiling_of(draft.job.spec.max_price_per_node_hour))
    if dear is not None and not any(node.price is not None for node in _members(draft, pool)):
        return "TooDear", dear
    return None


def unpaid(draft: Draft, pool: Pool, pods: int) -> tuple[str, str] | None:
    """Why so many pods on on-demand machines of the pool cannot be paid for, or None where they can."""
    made = _offer(draft, pool, pods)
    if made is None:
        return (
            "NoPrice",
            "on-demand, and its price is not known, so that onDemand.maxCost could not be held: set pricePerNodeHour",
        )
    if made.worth_it:
        return None
    return "BudgetExhausted", (
        f"on-demand, and {write_amount(max(made.left, Decimal(0)))} is left of onDemand.maxCost "
        f"{draft.job.spec.on_demand.max_cost}, which pays for {made.seconds} s of {made.pods} pods at "
        f"{write_amount(made.rate)} for an hour, their grace of {made.grace} s included; raise onDemand.maxCost "
        "for more"
    )


def left(draft: Draft) -> Decimal:
    """What is left of the budget when the open attempt, if there is one, is left out."""
    cap = Decimal(draft.job.spec.on_demand.max_cost or 0)
    held = Decimal(draft.status.cost.held or 0) if draft.status.cost else Decimal(0)
    return cap - Decimal(bill_of_ended(draft).on_demand_spent) - held


def _offer(draft: Draft, pool: Pool, pods: int) -> Offer | None:
    """What so many pods would cost there at the most, on any of the pool's machines; None where nobody says."""
    price = _agreed_price(draft, pool)
    if price is None:
        return None
    # An autoscaler may bring smaller machines than there are, of which a pod is a larger part.
    part = Decimal(1) if pool.spec.provisioning == "Autoscaled" else largest_share(draft, pool)
    rate = price * part
    return Offer(pods, rate, left(draft), grace_seconds(draft.job, pool))


def largest_share(draft: Draft, pool: Pool) -> Decimal:
    """The part of a node of the pool that a pod has at the most: on the one with the fewest GPUs that hold it."""
    each = gpus_per_pod(draft.job.spec.template.spec, pool.spec.gpu_resource)
    held = [node.capacity.get(pool.spec.gpu_resource, 0) for node in _members(draft, pool)]
    return share(each, min((gpus for gpus in held if gpus >= max(1, each)), default=0))


def _agreed_price(draft: Draft, pool: Pool) -> Decimal | None:
    """The most that a node of the pool costs, dearer ones than the job's own limit left out: they are not used."""
    ceiling = ceiling_of(draft.job.spec.max_price_per_node_hour)
    prices = [pool_price(pool, draft.world.prices)]
    prices += [node_price(node, pool, draft.world.prices) for node in _members(draft, pool)]
    return max(
        (price for price in prices if price is not None and not too_dear(price, ceiling)), default=None
    )


def terms(draft: Draft, pool: Pool, pods: int) -> Terms:
    """The terms on which so many pods of an attempt that is opened now are made there."""
    price = pool_price(pool, draft.world.prices)
    made = Terms(
        capacity_type=pool.spec.capacity_type,
        gpus_per_pod=gpus_per_pod(draft.job.spec.template.spec, pool.spec.gpu_resource),
        price=write_amount(price) if price is not None else None,
        on_demand_price=pool.spec.on_demand_price_per_node_hour,
    )
    if pool.spec.capacity_type != "OnDemand":
        return made
    offer, agreed = _offer(draft, pool, pods), _agreed_price(draft, pool)
    if offer is None or agreed is None:
        return made
    update = {
        "price": write_amount(agreed),
        "pod_price": write_amount(offer.rate),
        "budget_seconds": offer.seconds,
    }
    return made.model_copy(update=update)


def _members(draft: Draft, pool: Pool) -> Collection[Node]:
    return draft.world.members.get(pool.name, {}).values()
