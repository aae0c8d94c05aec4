"""Keeps the job's bill: which machines its attempts used, from when to when, and what that cost. Pure.

The bill is derived from what the status records of attempts, nothing is added up in memory: an attempt's machines
are entered once, in the write that ends it; those of the open attempt are reckoned anew each time.
"""

from decimal import ROUND_UP, Decimal
from typing import Any, Final

from spot_training.api.status import (
    MAX_COST_ATTEMPTS,
    MAX_COST_NODES,
    AttemptCost,
    AttemptNode,
    Bill,
    Cost,
    Current,
    NodeCost,
    Terms,
)
from spot_training.control.draft import Draft, moment
from spot_training.control.pods import grace_seconds
from spot_training.control.policies.budget import HOUR, MARGIN_SECONDS, share
from spot_training.control.policies.cost import Sums, Used, cost
from spot_training.control.policies.fate import Fate, Verdict
from spot_training.control.policies.price import node_price, write_amount
from spot_training.control.stopped import fates_of, ranks
from spot_training.control.world import Ask, Node, Pod

LEASE_SECONDS: Final = 1.0
REFRESH_SECONDS: Final = 300.0
"""While nothing else is written, the open attempt's cost is brought up to date so often."""


def terms_of(current: Current) -> Terms:
    """The attempt's terms; those of one that was opened by an older version say nothing of prices."""
    return current.terms or Terms()


def is_paid(current: Current, index: int) -> bool:
    """Whether the rank's pod runs on a job's budget, so that where it is counts from the first moment on."""
    return current.terms_of(index).budget_seconds is not None


def may_run_unseen(draft: Draft, index: int, pod: Pod | None) -> bool:
    """Whether a missing pod of a rank may still run and cost money, on a machine that is cut off.

    Then no other may be made beside it, although nothing of the attempt has started; ``pod``: the last that was seen.
    """
    was_bound = any(ref.index == index for ref in draft.current.nodes) or (pod is not None and pod.node != "")
    return is_paid(draft.current, index) and was_bound


def machine(draft: Draft, index: int, node: Node) -> dict[str, Any]:
    """What is recorded of a machine on which a rank's pod is bound: its price now, and its GPUs.

    An on-demand machine costs no less than what its budget was reserved for when the attempt was opened: it may
    have become cheaper only since its pod was made.
    """
    pool, prices, agreed = draft.pool_of(index), draft.world.prices, draft.current.terms_of(index)
    price = node_price(node, pool, prices)
    if agreed.capacity_type == "OnDemand" and agreed.price is not None:
        price = max(price or Decimal(0), Decimal(agreed.price))
    if node.price_trouble:
        draft.tell(
            "PriceInvalid", f"Node {node.name}: {node.price_trouble}; its pool's price is taken", "Warning"
        )
    return {
        "price": write_amount(price) if price is not None else None,
        "gpus": node.capacity.get(pool.spec.gpu_resource, 0) if pool is not None else 0,
    }


def note_machines(draft: Draft) -> None:
    """Note when each machine's use began and ended; where the attempt has just ended, when all of it did.

    May ask for the nodes' Leases: a machine that vanished was in use up to its last renewal.
    """
    current, pods = draft.current, draft.pods()
    fates = fates_of(draft, pods)
    made = []
    for ref in current.nodes:
        pod = pods.get(ref.index)
        start, end = ref.start, ref.end
        if start is None and pod is not None and (pod.accepted_at or pod.started_at):
            start = draft.stamp(pod.accepted_at or pod.started_at)
        if pod is not None and not pod.unseen:
            end = draft.stamp(pod.ended_at) if pod.ended and pod.ended_at else None
        if current.end is not None and end is None and start is not None:
            end = _last_use(draft, ref, pod, fates.get(ref.index))
        made.append(ref.model_copy(update={"start": start, "end": end}))
    if made != current.nodes and not draft.asks:
        draft.set_current(nodes=made)


def _last_use(draft: Draft, ref: AttemptNode, pod: Pod | None, fate: Verdict | None) -> str | None:
    """When the attempt, which is over, last used the machine, where no pod tells."""
    if pod is not None and pod.ended and pod.started_at is None:
        return ref.start  # Its node refused it.
    if fate is None or fate.fate is Fate.ALIVE:
        seen = pod.kill_at if pod is not None and pod.kill_at is not None else draft.now
        return draft.stamp(min(seen, draft.now))
    if draft.world.leases is None:
        draft.asks.add(Ask.LEASES)
        return None
    node = draft.world.nodes.get(ref.name)
    # Another machine under the name renews the same Lease.
    same = node is None or node.uid == ref.uid
    last = draft.world.leases.get(ref.name) if same else None
    if last is None and draft.current.stop is not None:
        last = moment(draft.current.stop.deadline or draft.current.stop.at)
    return draft.stamp(min(last if last is not None else draft.now, draft.now))


def known_to_end(draft: Draft, pods: dict[int, Pod]) -> bool:
    """Whether, of the ranks that the budget pays for, each pod's end is known, or can be known no better.

    A pod object can be deleted by force while its machine is cut off and runs on, which shows in the node only later.
    So where a pod's end was not seen, its kubelet must have been heard of since.
    """
    paid = {ref.index for ref in draft.current.nodes if is_paid(draft.current, ref.index)}
    if not paid:
        return True
    fates = fates_of(draft, pods)
    unseen = {
        index
        for index in paid
        if _is_missing(pods.get(index)) and index in fates and fates[index].fate is Fate.ALIVE
    }
    known = draft.job.status.current.nodes if draft.job.status.current else []
    written = {ref.index for ref in known if ref.missed is not None}
    made = [
        ref.model_copy(update={"missed": ref.missed or draft.stamp()}) if ref.index in unseen else ref
        for ref in draft.current.nodes
    ]
    if made != draft.current.nodes:
        draft.set_current(nodes=made)
    if unseen & written and draft.world.leases is None:
        draft.asks.add(Ask.LEASES)
        return False
    for ref in made:
        if ref.index in unseen and not _heard_since(draft, ref):
            about = f"rank {ref.index}: its pod is gone, and node {ref.name} has not been heard of since"
            draft.why = ("Stopping", about)
            draft.wake(draft.now + LEASE_SECONDS)
            return False
    return True


def _is_missing(pod: Pod | None) -> bool:
    return pod is None or (pod.removed and not pod.ended)


def _heard_since(draft: Draft, ref: AttemptNode) -> bool:
    """Whether the node's kubelet was heard of after the pod was found to be gone."""
    missed = moment(ref.missed)
    return missed is not None and (draft.world.leases or {}).get(ref.name, 0.0) > missed


def close(draft: Draft) -> None:
    """Enter the attempt, which has just ended, into the bill."""
    before, used, unseen = draft.status.cost, _used(draft, draft.current), _held(draft)
    if not used and before is None and not unseen:
        return
    held = Decimal(before.held or 0) if before else Decimal(0)
    ended = Sums.of(before.ended) if before else Sums()
    _write(draft, ended.plus(_cost(draft.current, used)), Sums(), used, held + unseen)


def enter_lost(draft: Draft, attempt: int, seconds: int) -> None:
    """Enter what was lost with an attempt into its part of the bill, as far as that is kept; where ranks had a pool
    apart, into that of the others.
    """
    bill = draft.status.cost
    mine = [each for each in bill.attempts if each.attempt == attempt] if bill is not None else []
    if bill is None or not mine or not seconds:
        return
    entry = next((each for each in mine if each.capacity_type == "Spot"), mine[0])
    made = entry.model_copy(update={"lost_seconds": entry.lost_seconds + seconds})
    attempts = [made if each is entry else each for each in bill.attempts]
    draft.set(cost=bill.model_copy(update={"attempts": attempts}))


def refresh(draft: Draft) -> None:
    """Bring the bill up to now, where the status is written anyway, or nobody has done so for a while."""
    current, before = draft.status.current, draft.status.cost
    if current is None or current.end is not None or not any(ref.start for ref in current.nodes):
        return
    as_of = moment(before.as_of) if before else None
    due = None if as_of is None else as_of + REFRESH_SECONDS
    if draft.status != draft.job.status or due is None or draft.now >= due:
        used = _used(draft, current)
        held = Decimal(before.held or 0) if before else Decimal(0)
        ended = Sums.of(before.ended) if before else Sums()
        _write(draft, ended, _cost(current, used), used, held)
        due = draft.now + REFRESH_SECONDS
    draft.wake(due)


def _write(draft: Draft, ended: Sums, running: Sums, used: list[Used], held: Decimal) -> None:
    total = ended.plus(running)
    known = draft.status.cost.attempts if draft.status.cost else []
    others = [each for each in known if each.attempt != draft.current.attempt]
    mine = [_entry(draft.current, pool, part) for pool, part in _by_pool(draft.current, used).items()]
    draft.set(
        cost=Cost.model_validate(
            {
                **total.bill(),
                "saved_percent": total.saved_percent(),
                "held": write_amount(held, ROUND_UP) if held else None,
                "as_of": draft.stamp(),
                "ended": ended.bill(),
                "attempts": [*others, *mine][-MAX_COST_ATTEMPTS:],
            }
        )
    )


def _by_pool(current: Current, used: list[Used]) -> dict[str, list[Used]]:
    """The attempt's machines by the pool that they were used in."""
    found: dict[str, list[Used]] = {}
    for each in used:
        found.setdefault(current.pool_of(each.index), []).append(each)
    return found


def _cost(current: Current, used: list[Used]) -> Sums:
    """What the machines cost, each on the terms of its own rank."""
    total = Sums()
    for part in _by_pool(current, used).values():
        total = total.plus(cost(part, current.terms_of(part[0].index)))
    return total


def _entry(current: Current, pool: str, used: list[Used]) -> AttemptCost:
    terms = current.terms_of(used[0].index)
    total = cost(used, terms)
    nodes = []
    for each in used[:MAX_COST_NODES]:
        alone = cost([each], terms)
        priced = each.price is not None
        nodes.append(
            NodeCost(
                index=each.index,
                name=each.node,
                price=write_amount(each.price) if each.price is not None else None,
                hours=write_amount(alone.spot_hours + alone.on_demand_hours),
                spent=write_amount(alone.spent) if priced else None,
                on_demand_equivalent=write_amount(alone.on_demand_equivalent) if priced else None,
            )
        )
    return AttemptCost(
        attempt=current.attempt,
        pool=pool,
        capacity_type=terms.capacity_type,
        hours=write_amount(total.spot_hours + total.on_demand_hours),
        spent=write_amount(total.spent),
        on_demand_equivalent=write_amount(total.on_demand_equivalent),
        saved_percent=total.saved_percent(),
        nodes=nodes,
    )


def _used(draft: Draft, current: Current) -> list[Used]:
    """The attempt's machines, with the seconds that each has been used so far."""
    found = []
    for ref in current.nodes:
        start, end = moment(ref.start), moment(ref.end)
        if start is None:
            continue
        node = draft.world.nodes.get(ref.name)
        until = draft.now if end is None else end
        if end is None and (node is None or node.uid != ref.uid):
            stop = current.stop
            until = moment(stop.deadline or stop.at) or draft.now if stop is not None else draft.now
        elif end is None and node is not None and not node.ready:
            until = node.ready_since
        price = Decimal(ref.price) if ref.price is not None else None
        seconds = max(0.0, min(until, draft.now) - start)
        found.append(Used(ref.index, ref.name, price, ref.gpus, seconds))
    return found


def _held(draft: Draft) -> Decimal:
    """Money that the ended attempt's pods may have used beyond what was seen of them.

    A pod may have come, run and gone unseen before the one of its rank that is known, or while nobody watched; on
    a machine that is lost, one may run on until its own deadline. No rank can have used more than its share of what
    was reserved. Kubelets cut their times to whole seconds, too.
    """
    current, pods = draft.current, draft.pods()
    opened = moment(current.opened_at)
    paid = [index for index in ranks(draft, pods) if is_paid(current, index)]
    if not paid or opened is None:
        return Decimal(0)
    fates = fates_of(draft, pods)
    refs = {ref.index: ref for ref in current.nodes}
    seen = {each.index: each.seconds for each in _used(draft, current)}
    total = Decimal(0)
    for index in paid:
        terms, ref, fate = current.terms_of(index), refs.get(index), fates.get(index)
        dead = fate is not None and fate.fate is Fate.GONE
        alive = fate is not None and fate.fate is Fate.ALIVE and ref is not None and _heard_since(draft, ref)
        most = _most_seconds(draft, index, pods.get(index), dead or alive, opened, seen.get(index, 0.0))
        unseen = max(0.0, min(most, float(terms.budget_seconds or 0)) - seen.get(index, 0.0))
        total += rank_rate(terms, ref) * Decimal(str(round(unseen, 3))) / HOUR
    return total


def _most_seconds(
    draft: Draft, index: int, pod: Pod | None, stopped: bool, opened: float, seen: float
) -> float:
    """Seconds for which pods of a rank of the ended attempt may have run at the most.

    ``stopped``: its machine is dead, or its kubelet knows that the pod is gone.
    """
    before = max(0.0, pod.created + 1.0 - opened) if pod is not None else 0.0
    if pod is not None and pod.ended and pod.ended_at is not None:
        return before + seen + 1.0
    if pod is not None and pod.removed and not pod.unseen and not pod.node:
        return before
    if stopped and (pod is None or pod.removed or pod.ended):
        return draft.now - opened + grace_seconds(draft.job, draft.pool_of(index)) + MARGIN_SECONDS
    return float("inf")


def rank_rate(terms: Terms, ref: AttemptNode | None) -> Decimal:
    """What the pod on that machine costs for an hour; where it is not known yet, the most it can."""
    if ref is not None and ref.price is not None:
        return Decimal(ref.price) * share(terms.gpus_per_pod, ref.gpus)
    return Decimal(terms.pod_price or 0)


def bill_of_ended(draft: Draft) -> Bill:
    """The part of the bill of attempts that are over."""
    return draft.status.cost.ended if draft.status.cost else Bill()
