"""On-demand machines standing in where no spot pool has room: when, for how much, and how long. Pure."""

from collections.abc import Collection
from decimal import Decimal

from spot_training.api.names import DEADLINE_MARGIN_SECONDS
from spot_training.api.status import Fallback, Terms
from spot_training.control import conditions
from spot_training.control.claims import attachable, needs_one_node
from spot_training.control.draft import Draft, moment
from spot_training.control.pods import grace_seconds
from spot_training.control.policies.budget import (
    LEAD_SECONDS,
    Meter,
    Offer,
    must_stop_at,
    pod_deadline,
    share,
)
from spot_training.control.policies.demand import Choice, Request
from spot_training.control.policies.needs import gpus_per_pod
from spot_training.control.policies.price import (
    MAX_AVOIDED,
    ceiling_of,
    dearer_nodes,
    node_price,
    pool_price,
    too_dear,
    write_amount,
)
from spot_training.control.setbacks import backing_off
from spot_training.control.spending import bill_of_ended, rank_rate, terms_of
from spot_training.control.stopping import stop_attempt
from spot_training.control.world import Job, Node, Pod, Pool, World


def request(draft: Draft, last: frozenset[str]) -> Request:
    """What placement is asked for: the gang, and which pools are not for it at this price and time.

    May ask for what is known of the job's volumes; it is void then.
    """
    spec = draft.job.spec
    refused = {}
    for name in spec.pools or draft.world.pools:
        pool = draft.world.pools.get(name)
        why = _refusal(draft, pool) if pool is not None else None
        if why is not None:
            refused[name] = why
    ceiling = ceiling_of(spec.max_price_per_node_hour)
    return Request(
        spec.replicas,
        spec.template.spec,
        spec.pools,
        last,
        one_node=needs_one_node(draft.job, draft.world),
        volumes=attachable(draft),
        queued=bool(draft.job.queue),
        refused=refused,
        ceiling=ceiling,
    )


def _refusal(draft: Draft, pool: Pool) -> tuple[str, str] | None:
    """Why the pool is not for the job now, as a word and a sentence, whatever room it has."""
    if pool.spec.capacity_type == "OnDemand":
        why = _not_yet(draft)
        if why is not None:
            return why
    dear = too_dear(pool_price(pool, draft.world.prices), ceiling_of(draft.job.spec.max_price_per_node_hour))
    if dear is not None and not any(node.price is not None for node in _members(draft, pool)):
        return "TooDear", dear
    return _unpaid(draft, pool) if pool.spec.capacity_type == "OnDemand" else None


def _not_yet(draft: Draft) -> tuple[str, str] | None:
    wanted = draft.job.spec.on_demand
    if wanted.policy != "WhenNoSpot":
        return "OnDemandNotAllowed", f"on-demand, and onDemand.policy is {wanted.policy}"
    untried = _untried(draft)
    if untried is not None:
        return "OnDemandLater", f"on-demand, not before spot pool {untried} has been tried again"
    due = _no_spot_since(draft) + wanted.after_seconds
    if draft.now < due:
        draft.wake(due)
        return "OnDemandLater", f"on-demand, from {draft.stamp(due)} on (onDemand.afterSeconds)"
    return None


def _untried(draft: Draft) -> str | None:
    """A spot pool that backs off, so that nobody knows whether it has room; None once the wait for room has begun."""
    if draft.status.fallback is not None and draft.status.fallback.no_spot_since is not None:
        return None
    pools, wanted = draft.world.pools, draft.job.spec.pools
    spot = [
        name
        for name in backing_off(draft)
        if (not wanted or name in wanted) and name in pools and pools[name].spec.capacity_type == "Spot"
    ]
    return spot[0] if spot else None


def _no_spot_since(draft: Draft) -> float:
    known = draft.status.fallback.no_spot_since if draft.status.fallback else None
    return moment(known) or draft.now


def _members(draft: Draft, pool: Pool) -> Collection[Node]:
    return draft.world.members.get(pool.name, {}).values()


def _unpaid(draft: Draft, pool: Pool) -> tuple[str, str] | None:
    """Why on-demand machines of the pool cannot be paid for, or None where they can."""
    offer = _offer(draft, pool)
    if offer is None:
        return (
            "NoPrice",
            "on-demand, and its price is not known, so that onDemand.maxCost could not be held: set pricePerNodeHour",
        )
    if offer.worth_it:
        return None
    return "BudgetExhausted", (
        f"on-demand, and {write_amount(max(offer.left, Decimal(0)))} is left of onDemand.maxCost "
        f"{draft.job.spec.on_demand.max_cost}, which pays for {offer.seconds} s of {offer.pods} pods at "
        f"{write_amount(offer.rate)} for an hour, their grace of {offer.grace} s included; raise onDemand.maxCost, "
        "or wait for spot machines"
    )


def _left(draft: Draft) -> Decimal:
    """What is left of the budget when the open attempt, if there is one, is left out."""
    cap = Decimal(draft.job.spec.on_demand.max_cost or 0)
    held = Decimal(draft.status.cost.held or 0) if draft.status.cost else Decimal(0)
    return cap - Decimal(bill_of_ended(draft).on_demand_spent) - held


def _offer(draft: Draft, pool: Pool) -> Offer | None:
    """What the gang would cost there at the most, on any of the pool's machines; None where nobody says."""
    spec = draft.job.spec
    price = _agreed_price(draft, pool)
    if price is None:
        return None
    rate = price * largest_share(draft, pool)
    return Offer(spec.replicas, rate, _left(draft), grace_seconds(draft.job, pool))


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


def terms(draft: Draft, pool: Pool) -> Terms:
    """The terms on which an attempt is opened there now."""
    price = pool_price(pool, draft.world.prices)
    made = Terms(
        capacity_type=pool.spec.capacity_type,
        gpus_per_pod=gpus_per_pod(draft.job.spec.template.spec, pool.spec.gpu_resource),
        price=write_amount(price) if price is not None else None,
        on_demand_price=pool.spec.on_demand_price_per_node_hour,
    )
    offer = _offer(draft, pool) if pool.spec.capacity_type == "OnDemand" else None
    agreed = _agreed_price(draft, pool)
    if offer is None or agreed is None:
        return made
    update = {
        "price": write_amount(agreed),
        "pod_price": write_amount(offer.rate),
        "budget_seconds": offer.seconds,
    }
    return made.model_copy(update=update)


def note_search(draft: Draft, wanted: Request, choice: Choice) -> None:
    """Remember since when no spot pool has had room, and say where money is what is missing."""
    if draft.job.spec.on_demand.policy != "WhenNoSpot":
        return
    pool = draft.world.pools.get(choice.pool) if choice.pool else None
    if (pool is None or pool.spec.capacity_type == "OnDemand") and _untried(draft) is None:
        remember(draft, no_spot_since=draft.stamp(_no_spot_since(draft)))
    for name, (word, why) in wanted.refused.items():
        if word == "BudgetExhausted" and choice.pool is None:
            if not conditions.is_true(draft.status.conditions, word):
                draft.tell(word, f"{name}: {why}", type_="Warning")
            draft.condition(word, True, word, f"{name}: {why}")
            return


def announce(draft: Draft) -> None:
    """Say, before there is a pod, that the attempt that is being opened uses on-demand machines, and for how much."""
    current, made = draft.current, terms_of(draft.current)
    if made.capacity_type != "OnDemand":
        return
    spec = draft.job.spec
    until = f"for {made.budget_seconds} s at the most" if made.budget_seconds is not None else "at no cost"
    message = (
        f"no spot pool has room since {draft.stamp(_no_spot_since(draft))}: attempt {current.attempt} uses on-demand "
        f"pool {current.pool}, {spec.replicas} pods at {made.pod_price} for an hour {until} "
        f"({write_amount(max(_left(draft), Decimal(0)))} left of onDemand.maxCost {spec.on_demand.max_cost})"
    )
    draft.condition("OnDemand", True, "NoSpot", message)
    draft.tell("OnDemandFallback", f"{message[0].upper()}{message[1:]}", type_="Warning")
    if conditions.find(draft.status.conditions, "BudgetExhausted"):
        draft.condition("BudgetExhausted", False, "BudgetLeft", message)


def watch(draft: Draft, pods: dict[int, Pod]) -> None:
    """Stop an attempt whose machines are dearer than they were, or whose money is nearly used up."""
    current = draft.current
    if current.stop is not None or draft.asks:
        return
    ceiling = ceiling_of(draft.job.spec.max_price_per_node_hour)
    for ref in current.nodes if current.started_at is None else ():
        dear = too_dear(Decimal(ref.price) if ref.price is not None else None, ceiling)
        if dear is not None:
            # Its price has changed while the pod was on its way there.
            draft.tell("TooDear", f"Attempt {current.attempt} gives its pods back: node {ref.name}: {dear}")
            stop_attempt(draft, "TooDear", "NotStarted", f"node {ref.name}: {dear}")
            return
    if terms_of(current).capacity_type == "OnDemand":
        _watch_money(draft, pods)


def limits(job: Job, world: World, now: float) -> tuple[int | None, tuple[str, ...]]:
    """What holds for a pod of the open attempt that is made now: seconds that it may run (None: as long as it
    wants; 0: it must not be made), and the nodes that it is kept off because they cost more than was agreed.
    """
    current = job.status.current
    pool = world.pools.get(current.pool) if current is not None else None
    if current is None or pool is None:
        return None, ()
    made = terms_of(current)
    ceiling = ceiling_of(job.spec.max_price_per_node_hour)
    if made.capacity_type == "OnDemand" and made.price is not None:
        agreed = Decimal(made.price)
        ceiling = agreed if ceiling is None else min(agreed, ceiling)
    members = world.members.get(pool.name, {}).values()
    return _limit(job, world, now), tuple(dearer_nodes(members, pool, world.prices, ceiling)[:MAX_AVOIDED])


def _limit(job: Job, world: World, now: float) -> int | None:
    current = job.status.current
    budget = current.terms.budget_seconds if current is not None and current.terms is not None else None
    opened = moment(current.opened_at) if current is not None else None
    if current is None or budget is None or opened is None:
        return None
    return max(0, pod_deadline(budget, opened, grace_seconds(job, world.pools.get(current.pool)), now))


def ended_by_budget(draft: Draft, pods: dict[int, Pod]) -> bool:
    """Whether kubelets have ended pods because their money was used up, nobody being there to do it in order.

    A rank that failed before that has failed. Once it is so, every later exit follows from it.
    """
    due = [
        pod.accepted_at + pod.budget_seconds
        for pod in pods.values()
        if pod.accepted_at is not None and pod.budget_seconds is not None
    ]
    if not due or draft.current.stop is not None:
        return False
    open_ranks = [pod for pod in pods.values() if pod.index not in draft.current.completed]
    # Kubelet's times are whole seconds, cut off.
    over = min(due) - 1.0
    told = [pod for pod in open_ranks if pod.budget_seconds and pod.status_reason == "DeadlineExceeded"]
    failed = [pod for pod in open_ranks if pod.exit is not None]
    if not told and not failed:
        return False
    if any(pod.exit is not None and pod.exit.at < over for pod in failed if pod not in told):
        return False
    _stop_for_money(draft, pods)
    return True


def _watch_money(draft: Draft, pods: dict[int, Pod]) -> None:
    current, made = draft.current, terms_of(draft.current)
    refs = {ref.index: ref for ref in current.nodes}
    missing = any(index not in pods or pods[index].removed for index in range(draft.job.replicas))
    if missing and current.started_at is None and _limit(draft.job, draft.world, draft.now) == 0:
        _stop_for_money(draft, pods)
        return
    meters = []
    for index in range(draft.job.replicas):
        ref, pod = refs.get(index), pods.get(index)
        start = moment(ref.start) if ref is not None else None
        limit = pod.budget_seconds if pod is not None else None
        accepted = pod.accepted_at if pod is not None else None
        meters.append(
            Meter(
                rank_rate(made, ref),
                start if start is not None else accepted,
                moment(ref.end) if ref is not None else None,
                accepted + limit if accepted is not None and limit is not None else None,
            )
        )
    at = must_stop_at(meters, _left(draft), _grace(draft, pods) + LEAD_SECONDS, draft.now)
    if at is not None and draft.now >= at:
        _stop_for_money(draft, pods)
    else:
        draft.wake(at)


def _grace(draft: Draft, pods: dict[int, Pod]) -> int:
    """The grace that the pods were made with, and their money was reserved for; an edit since changes nothing."""
    return max((pod.grace for pod in pods.values()), default=grace_seconds(draft.job, draft.pool))


def _stop_for_money(draft: Draft, pods: dict[int, Pod]) -> None:
    spec = draft.job.spec
    message = f"onDemand.maxCost, {spec.on_demand.max_cost}, is used up when the pods have stopped"
    stopping = f"Stopping attempt {draft.current.attempt} on on-demand pool {draft.current.pool}: {message}"
    draft.tell("BudgetExhausted", stopping, type_="Warning")
    draft.condition("BudgetExhausted", True, "BudgetExhausted", message)
    deadline = draft.now + _grace(draft, pods) + DEADLINE_MARGIN_SECONDS
    stop_attempt(draft, "BudgetExhausted", "Released", message, deadline)


def note_ended(draft: Draft) -> None:
    """What the end of an attempt on spot machines means to the wait for them: where they ran, it begins anew; a
    pool that takes a gang and does not let it start is no room, so there it has begun with the attempt.
    """
    current, end = draft.current, draft.current.end
    if terms_of(current).capacity_type == "OnDemand" or end is None:
        return
    if current.running_at is not None:
        draft.set(fallback=None)
    elif end.reason == "ProvisionTimeout" and draft.job.spec.on_demand.policy == "WhenNoSpot":
        known = draft.status.fallback.no_spot_since if draft.status.fallback else None
        remember(draft, no_spot_since=known or current.opened_at)


def settle(draft: Draft) -> None:
    """What the rest of the plan means to the fallback: on spot machines again, or not on on-demand ones any more."""
    current, fallback = draft.status.current, draft.status.fallback
    if fallback is not None and draft.job.spec.suspend:
        draft.set(fallback=None)
    if current is None:
        return
    on_demand = terms_of(current).capacity_type == "OnDemand"
    if fallback is not None and not on_demand and current.running_at is not None and current.end is None:
        draft.set(fallback=None)
    if current.end is not None or not on_demand:
        if draft.status.fallback is not None:
            remember(draft, spot_since=None)
        if conditions.is_true(draft.status.conditions, "OnDemand"):
            end = current.end
            why = (end.reason, end.message) if end is not None and on_demand else ("Spot", "on spot machines")
            draft.condition("OnDemand", False, *why)


def remember(draft: Draft, **fields: str | None) -> None:
    """Change what is remembered of the fallback; nothing is remembered as nothing."""
    made = (draft.status.fallback or Fallback()).model_copy(update=fields)
    draft.set(fallback=made if made.no_spot_since or made.spot_since else None)
