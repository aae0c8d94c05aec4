"""On-demand machines standing in where no spot pool has room: when, for how much, and how long. Pure."""

from decimal import Decimal

from spot_training.api.names import DEADLINE_MARGIN_SECONDS
from spot_training.api.status import Fallback
from spot_training.control import apart, conditions, paying
from spot_training.control.claims import attachable, needs_one_node
from spot_training.control.draft import Draft, moment
from spot_training.control.pods import grace_seconds
from spot_training.control.policies.budget import (
    LEAD_SECONDS,
    Meter,
    must_stop_at,
    pod_deadline,
)
from spot_training.control.policies.demand import Choice, Request
from spot_training.control.policies.price import (
    MAX_AVOIDED,
    agreed_ceiling,
    ceiling_of,
    dearer_nodes,
    too_dear,
    write_amount,
)
from spot_training.control.setbacks import backing_off, late_pools
from spot_training.control.spending import rank_rate, terms_of
from spot_training.control.stopping import stop_attempt
from spot_training.control.world import Job, Pod, Pool, World


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
        apart=apart.wanted(draft),
    )


def _refusal(draft: Draft, pool: Pool) -> tuple[str, str] | None:
    """Why the pool is not for the job now, as a word and a sentence, whatever room it has."""
    on_demand = pool.spec.capacity_type == "OnDemand"
    why = (_not_yet(draft) if on_demand else None) or paying.too_dear_there(draft, pool)
    return why or (paying.unpaid(draft, pool, draft.job.spec.replicas) if on_demand else None)


def _not_yet(draft: Draft) -> tuple[str, str] | None:
    wanted = draft.job.spec.on_demand
    if wanted.policy != "WhenNoSpot":
        only = " (it is for onDemand.ranks only)" if wanted.ranks else ""
        return "OnDemandNotAllowed", f"on-demand, and onDemand.policy is {wanted.policy}{only}"
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


def note_search(draft: Draft, wanted: Request, choice: Choice) -> None:
    """Remember since when no spot pool has had room, and say where money is what is missing."""
    if choice.pool is None:
        apart.note_unpaid(draft)
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
    apart.announce(draft)
    if made.capacity_type != "OnDemand":
        return
    spec = draft.job.spec
    until = f"for {made.budget_seconds} s at the most" if made.budget_seconds is not None else "at no cost"
    message = (
        f"no spot pool has room since {draft.stamp(_no_spot_since(draft))}: attempt {current.attempt} uses on-demand "
        f"pool {current.pool}, {spec.replicas} pods at {made.pod_price} for an hour {until} "
        f"({write_amount(max(paying.left(draft), Decimal(0)))} left of onDemand.maxCost {spec.on_demand.max_cost})"
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
    paid = [
        index for index in range(draft.job.replicas) if current.terms_of(index).capacity_type == "OnDemand"
    ]
    if paid:
        _watch_money(draft, pods, paid)


def limits(job: Job, world: World, index: int, now: float) -> tuple[int | None, tuple[str, ...]]:
    """What holds for a rank's pod of the open attempt that is made now: seconds that it may run (None: as long as it
    wants; 0: it must not be made), and the nodes that it is kept off because they cost more than was agreed.
    """
    current = job.status.current
    pool = world.pools.get(current.pool_of(index)) if current is not None else None
    if current is None or pool is None:
        return None, ()
    ceiling = agreed_ceiling(job.spec.max_price_per_node_hour, current.terms_of(index))
    members = world.members.get(pool.name, {}).values()
    return _limit(job, world, index, now), tuple(
        dearer_nodes(members, pool, world.prices, ceiling)[:MAX_AVOIDED]
    )


def _limit(job: Job, world: World, index: int, now: float) -> int | None:
    current = job.status.current
    budget = current.terms_of(index).budget_seconds if current is not None else None
    opened = moment(current.opened_at) if current is not None else None
    if current is None or budget is None or opened is None:
        return None
    grace = grace_seconds(job, world.pools.get(current.pool_of(index)))
    return max(0, pod_deadline(budget, opened, grace, now))


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


def _watch_money(draft: Draft, pods: dict[int, Pod], paid: list[int]) -> None:
    current = draft.current
    refs = {ref.index: ref for ref in current.nodes}
    missing = [index for index in paid if index not in pods or pods[index].removed]
    if current.started_at is None and any(
        _limit(draft.job, draft.world, index, draft.now) == 0 for index in missing
    ):
        _stop_for_money(draft, pods)
        return
    meters = []
    for index in paid:
        ref, pod = refs.get(index), pods.get(index)
        start = moment(ref.start) if ref is not None else None
        limit = pod.budget_seconds if pod is not None else None
        accepted = pod.accepted_at if pod is not None else None
        meters.append(
            Meter(
                rank_rate(current.terms_of(index), ref),
                start if start is not None else accepted,
                moment(ref.end) if ref is not None else None,
                accepted + limit if accepted is not None and limit is not None else None,
            )
        )
    at = must_stop_at(meters, paying.left(draft), _grace(draft, pods) + LEAD_SECONDS, draft.now)
    if at is not None and draft.now >= at:
        _stop_for_money(draft, pods)
    else:
        draft.wake(at)


def _grace(draft: Draft, pods: dict[int, Pod]) -> int:
    """The grace that the pods were made with, and their money was reserved for; an edit since changes nothing."""
    known = draft.current.on_demand
    pool = draft.pool if known is None else draft.world.pools.get(known.pool)
    own = [pod.grace for pod in pods.values() if known is None or pod.index in known.ranks]
    return max(own, default=grace_seconds(draft.job, pool))


def _stop_for_money(draft: Draft, pods: dict[int, Pod]) -> None:
    spec = draft.job.spec
    message = f"onDemand.maxCost, {spec.on_demand.max_cost}, is used up when the pods have stopped"
    stopping = (
        f"Stopping attempt {draft.current.attempt} on on-demand pool {draft.current.pools[-1]}: {message}"
    )
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
    elif current.pool in late_pools(draft) and draft.job.spec.on_demand.policy == "WhenNoSpot":
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
    on_demand = on_demand or current.on_demand is not None
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
