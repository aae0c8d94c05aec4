"""Whether a job on on-demand machines goes back to spot ones. Pure; the rule is in :mod:`.policies.fallback`."""

import dataclasses
from decimal import Decimal

from spot_training.api.status import Fallback
from spot_training.control.draft import Draft, moment
from spot_training.control.ondemand import remember, request
from spot_training.control.paying import largest_share
from spot_training.control.pods import grace_seconds
from spot_training.control.policies.fallback import (
    LOOK_SECONDS,
    STEADY_SECONDS,
    Move,
    expected_stay,
    lost_seconds,
    saving,
)
from spot_training.control.policies.price import pool_price, write_amount
from spot_training.control.setbacks import last_pools, shut_pools
from spot_training.control.spending import bill_of_ended, rank_rate, terms_of
from spot_training.control.stopping import stop_attempt
from spot_training.control.world import Ask, Pool


def consider_spot(draft: Draft) -> None:
    """Go back to spot machines where one pool has had room for a while, and the move is cheaper than staying."""
    current = draft.current
    open_there = current.running_at is not None and current.stop is None and not draft.asks
    if not open_there or terms_of(current).capacity_type != "OnDemand":
        return
    if draft.job.spec.on_demand.policy == "Never":
        stop_attempt(draft, "OnDemandNotAllowed", "Released", "onDemand.policy is Never now")
        return
    draft.wake(draft.now + LOOK_SECONDS)
    pool = _spot_pool(draft)
    if draft.asks:
        return
    if pool is None:
        remember(draft, spot_since=None)
        return
    fallback = draft.status.fallback or Fallback()
    since = moment(fallback.spot_since) or draft.now
    remember(draft, spot_since=draft.stamp(since))
    saved = _saving(draft, pool)
    if saved is None or saved <= 0:
        return
    if draft.now < since + STEADY_SECONDS:
        draft.wake(since + STEADY_SECONDS)
        return
    message = (
        f"spot pool {pool.name} has had room since {draft.stamp(since)}, and moving there saves about "
        f"{write_amount(saved)}, the restart included"
    )
    draft.tell(
        "BackToSpot", f"Stopping attempt {draft.current.attempt} on pool {draft.current.pool}: {message}"
    )
    stop_attempt(draft, "BackToSpot", "Released", message)


def _spot_pool(draft: Draft) -> Pool | None:
    """The spot pool that would take the gang now, but for ranks that stay on on-demand machines."""
    off = last_pools(draft)
    wanted = request(draft, off)
    elsewhere = {
        name: ("OnDemandNotAllowed", "not what is looked for")
        for name, pool in draft.world.pools.items()
        if pool.spec.capacity_type == "OnDemand" or name in off
    }
    elsewhere.update(shut_pools(draft))
    # A job that queues would be let in anywhere, to wait there. What goes apart need not find room: it has it now.
    pods = wanted.replicas - (wanted.apart.pods if wanted.apart is not None else 0)
    draft.request = dataclasses.replace(
        wanted, replicas=pods, apart=None, queued=False, refused={**wanted.refused, **elsewhere}
    )
    choice = draft.world.choice
    if choice is None or not choice.request.same(draft.request):
        draft.asks.add(Ask.ROOM)
        return None
    return draft.world.pools.get(choice.pool) if choice.pool and not choice.provisioned else None


def _saving(draft: Draft, pool: Pool) -> Decimal | None:
    """What moving the gang to the spot pool saves; None where the pool's price is not known."""
    spec, current, made = draft.job.spec, draft.current, terms_of(draft.current)
    price = pool_price(pool, draft.world.prices)
    opened, running = moment(current.opened_at), moment(current.running_at)
    if price is None or opened is None or running is None:
        return None
    here = sum((rank_rate(made, ref) for ref in current.nodes), Decimal(0))
    part = largest_share(draft, pool)
    stay = spec.on_demand.ranks if (draft.request and draft.request.replicas < spec.replicas) else None
    staying = sum((rank_rate(made, ref) for ref in current.nodes if ref.index in (stay or ())), Decimal(0))
    gang = (draft.job.replicas - len(stay or ())) * part
    move = Move(
        on_demand=here,
        spot=price * gang + staying,
        stop_seconds=grace_seconds(draft.job, draft.pool),
        start_seconds=running - opened,
        lost_seconds=lost_seconds(
            spec.checkpoint.writer == "Library", spec.checkpoint.interval_seconds, draft.now - running
        ),
    )
    on_spot = Decimal(bill_of_ended(draft).spot_hours) * 3600 / gang
    return saving(move, expected_stay(float(on_spot), draft.status.disruptions))
