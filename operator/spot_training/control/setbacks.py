"""What an attempt that came to nothing leaves behind for the next one: delays, pools and machines to keep off. Pure."""

from typing import Final

from spot_training.api.status import Demotion, PoolBackoff
from spot_training.control.draft import Draft, moment
from spot_training.control.policies.avoid import BLAMING, strike
from spot_training.control.policies.backoff import (
    FORGOTTEN_SECONDS,
    HEALTHY_SECONDS,
    delay,
    of_the_pool,
    pace,
)
from spot_training.control.stopped import STUCK, is_stuck
from spot_training.control.world import Pod

MAX_POOLS: Final = 64

DEMOTED_SECONDS: Final = 600.0
"""How long a pool is tried last on which a gang did not become whole, or that took a node from it."""

AVOIDED_SECONDS, LONGEST_AVOIDED_SECONDS = 3600.0, 86400.0
"""How long a pool that does not suit the program is not tried at all: first, and at most."""


def ran_long(draft: Draft) -> bool:
    """Whether the attempt ran long enough for capacity to be called stable; a save alone says nothing of that."""
    running = moment(draft.current.running_at)
    told = moment(draft.current.stop.at) if draft.current.stop else None
    long = running is not None and (told or draft.now) - running >= HEALTHY_SECONDS
    # A node's clock may be wrong, and by it the attempt may seem to have begun earlier; how long a container ran,
    # it knows.
    return long and not any(_ended_soon(pod) for pod in draft.pods().values())


def _ended_soon(pod: Pod) -> bool:
    """Whether a program failed soon, from start to end by one clock, that of its node."""
    if pod.exit is None or pod.exit.code == 0 or pod.started_at is None:
        return False
    return 0.0 <= pod.exit.at - pod.started_at < HEALTHY_SECONDS - 1.0


def saved_anew(draft: Draft) -> bool:
    """Whether the attempt has saved a checkpoint of its own, as its programs report. Their times are their nodes'."""
    return any(_saved_anew(pod) for pod in draft.pods().values())


def _saved_anew(pod: Pod) -> bool:
    report = pod.report
    if report is None or report.checkpoint_step is None:
        return False
    if report.resumed_step is not None:
        return report.checkpoint_step > report.resumed_step
    return (report.checkpoint_time or 0.0) > (pod.started_at or float("inf"))


def late_pools(draft: Draft) -> list[str]:
    """The pools whose pods had not started when the attempt ended because its gang was not whole in time."""
    current, pods = draft.current, draft.pods()
    if current.end is None or current.end.reason != "ProvisionTimeout":
        return []
    late = {
        current.pool_of(index)
        for index in range(current.replicas or draft.job.spec.replicas)
        if index not in pods or pods[index].started_at is None
    }
    return sorted(late) or [current.pool]


def healthy(draft: Draft) -> bool:
    """Whether the attempt ran long enough, or saved, so that the program's trouble before it is over."""
    return ran_long(draft) or saved_anew(draft)


def retry_after(draft: Draft, streak: int, at_least: bool = False) -> None:
    """Let the job wait, whatever the pool, after the ``streak``-th end of its kind in a row.

    ``at_least``: where it waits for longer already, it does so.
    """
    seconds = _delay(draft, streak)
    if at_least and (moment(draft.status.next_try_at) or 0.0) > draft.now + seconds:
        return
    draft.set(next_try_at=draft.stamp(draft.now + seconds) if seconds else None, next_try_pool=None)


def count_disruption(draft: Draft, reason: str) -> None:
    """When it is tried again after a disruption: the first one costs no time."""
    draft.set(disruptions=draft.status.disruptions + 1)
    if of_the_pool(reason):
        _wait_for_pool(draft, reason)
    else:
        draft.set(disruption_streak=draft.status.disruption_streak + 1)
        retry_after(draft, draft.status.disruption_streak - 1)
    _keep_pace(draft)
    if reason == "Reclaimed":
        _demote(draft, reason)


def count_unstarted(draft: Draft, reason: str) -> None:
    """When it is tried again after an attempt that did not come to run, or that gave its pods back."""
    if reason == "SpecChanged":
        draft.set(start_streak=0)
        retry_after(draft, 0)
        return
    if of_the_pool(reason):
        _wait_for_pool(draft, reason)
    else:
        draft.set(start_streak=draft.status.start_streak + 1)
        retry_after(draft, draft.status.start_streak)
    _keep_pace(draft)
    if reason == "ProvisionTimeout":
        _demote(draft, reason)


def _delay(draft: Draft, streak: int) -> float:
    backoff = draft.job.spec.recovery.backoff
    seed = f"{draft.job.uid}/{draft.current.attempt}"
    return delay(streak, backoff.initial_seconds, backoff.max_seconds, seed)


def _blamed(draft: Draft, reason: str) -> list[str]:
    """The pools of the attempt that ended it: of a gang on two, often only one."""
    if reason == "ProvisionTimeout":
        return late_pools(draft)
    stop = draft.current.stop
    return [draft.pool_on(stop.node if stop else None)]


def _wait_for_pool(draft: Draft, reason: str) -> None:
    """Let the pool that ended the attempt wait, and no other; after its first setback not even that."""
    rows = remembered_backoffs(draft)
    for pool in _blamed(draft, reason):
        setbacks = 1 + next((each.setbacks for each in rows if each.pool == pool), 0)
        seconds = _delay(draft, setbacks - 1)
        made = PoolBackoff(
            pool=pool,
            setbacks=setbacks,
            reason=reason,
            at=draft.stamp(),
            next_try_at=draft.stamp(draft.now + seconds) if seconds else None,
        )
        rows = [*(each for each in rows if each.pool != pool), made]
    draft.set(pool_backoffs=rows[-MAX_POOLS:], next_try_at=None, next_try_pool=None)


def _keep_pace(draft: Draft) -> None:
    """Bound the attempts of the job over all pools together."""
    if ran_long(draft):
        return
    longest = draft.job.spec.recovery.backoff.max_seconds
    until, free = pace(moment(draft.status.paced_until), draft.now, longest)
    draft.set(paced_until=draft.stamp(until))
    if free > (moment(draft.status.next_try_at) or draft.now):
        draft.set(next_try_at=draft.stamp(free), next_try_pool=None)


def remembered_backoffs(draft: Draft) -> list[PoolBackoff]:
    """The rows of setbacks that are not too long ago."""
    return [
        each
        for each in draft.status.pool_backoffs
        if draft.now - (moment(each.next_try_at or each.at) or 0.0) < FORGOTTEN_SECONDS
    ]


def backing_off(draft: Draft) -> dict[str, PoolBackoff]:
    """The pools that are not tried yet, by name; the first to be tried first. Asks to be woken at each one's time."""
    waiting = [each for each in draft.status.pool_backoffs if (moment(each.next_try_at) or 0.0) > draft.now]
    for each in waiting:
        draft.wake(moment(each.next_try_at))
    return {each.pool: each for each in sorted(waiting, key=lambda each: (each.next_try_at, each.pool))}


def _demote(draft: Draft, reason: str) -> None:
    for pool in _blamed(draft, reason):
        others = [each for each in draft.status.demoted_pools if each.pool != pool or each.avoid]
        made = Demotion(pool=pool, until=draft.stamp(draft.now + DEMOTED_SECONDS), reason=reason)
        draft.set(demoted_pools=[*others, made][-MAX_POOLS:])


def avoid_pool(draft: Draft, pool: str, why: str) -> None:
    """Keep the job off a pool that does not suit its program; each time for twice as long."""
    others = [each for each in draft.status.demoted_pools if each.pool != pool]
    before = next((each for each in draft.status.demoted_pools if each.pool == pool and each.avoid), None)
    times = min(before.times + 1, 16) if before else 1
    seconds = min(LONGEST_AVOIDED_SECONDS, AVOIDED_SECONDS * 2 ** (times - 1))
    until = draft.stamp(draft.now + seconds)
    made = Demotion(pool=pool, until=until, reason="PoolUnsuitable", avoid=True, message=why, times=times)
    draft.set(demoted_pools=[*others, made][-MAX_POOLS:], next_try_at=None, next_try_pool=None)
    draft.tell("PoolUnsuitable", f"Pool {pool} is avoided until {until}: {why}", type_="Warning")


def remembered_demotions(draft: Draft) -> list[Demotion]:
    """A pool that was avoided is remembered beyond its time, so that the next time is longer."""
    return [
        each
        for each in draft.status.demoted_pools
        if (moment(each.until) or 0.0) + (LONGEST_AVOIDED_SECONDS if each.avoid else 0.0) > draft.now
    ]


def shut_pools(draft: Draft) -> dict[str, tuple[str, str]]:
    """The pools that are not to be tried now, each with a word and a sentence; asks to be woken when that changes."""
    shut = {
        name: (
            "PoolBackOff",
            f"not tried before {each.next_try_at} ({each.setbacks} setbacks in a row there, the last: {each.reason})",
        )
        for name, each in backing_off(draft).items()
    }
    for demotion in remembered_demotions(draft):
        if demotion.avoid and (moment(demotion.until) or 0.0) > draft.now:
            draft.wake(moment(demotion.until))
            shut[demotion.pool] = "PoolAvoided", f"avoided until {demotion.until}: {demotion.message}"
    return shut


def last_pools(draft: Draft, reason: str = "") -> frozenset[str]:
    """The pools to try last for now, all or those that are for that reason; asks to be woken when that changes."""
    last = [
        each
        for each in draft.status.demoted_pools
        if not each.avoid and reason in ("", each.reason) and (moment(each.until) or 0.0) > draft.now
    ]
    for each in last:
        draft.wake(moment(each.until))
    return frozenset(each.pool for each in last)


def note_end(draft: Draft) -> None:
    """End the rows that the attempt has ended by running, and remember the machine on which it failed."""
    current, end = draft.current, draft.current.end
    if current.running_at is not None and draft.status.start_streak:
        draft.set(start_streak=0)
    if ran_long(draft):
        left = [each for each in draft.status.pool_backoffs if each.pool not in current.pools]
        draft.set(disruption_streak=0, pool_backoffs=left)
    _keep_off_stuck(draft)
    if end is None or not (end.cls == "Failure" or end.reason in BLAMING):
        return
    name = current.stop.node if current.stop else None
    ran = next((ref.uid for ref in current.nodes if ref.name == name), None)
    node = draft.world.nodes.get(name or "")
    uid = ran or (node.uid if node else None)
    if name is None or uid is None:
        return
    made = strike(draft.status.suspect_nodes, name, uid, end.reason, draft.now)
    draft.set(suspect_nodes=made)
    if made[-1].avoided_until:
        message = (
            f"{made[-1].failures} attempts have failed on node {name}, the last: {end.reason}; avoided until "
        )
        draft.tell("NodeAvoided", f"{message}{made[-1].avoided_until}", type_="Warning")


def _keep_off_stuck(draft: Draft) -> None:
    """Keep off machines on which a pod of the attempt cannot be killed: the next one would hang there, too."""
    for pod in draft.pods().values():
        node = draft.node_of(pod)
        if node is None or not is_stuck(pod, draft.now):
            continue
        made = strike(draft.status.suspect_nodes, node.name, node.uid, STUCK, draft.now, strikes=1)
        draft.set(suspect_nodes=made)
        message = (
            f"pod {pod.name} on node {node.name} cannot be killed, and the next attempt does not wait for it"
        )
        draft.tell(STUCK, f"{message}; the node is avoided until {made[-1].avoided_until}", type_="Warning")
