"""Backoff: a pool's setbacks delay the next try there and nowhere else; attempts are bounded over all pools."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.api.status import PoolBackoff
from spot_training.api.times import format_time
from spot_training.control.observations import DISRUPTIONS, FAILURES, NOT_STARTED
from spot_training.control.policies.backoff import (
    FORGOTTEN_SECONDS,
    HEALTHY_SECONDS,
    WAITS,
    of_the_pool,
    pace,
)
from spot_training.control.world import Exit
from tests.unit.control.build import GPU, NOW, Scene, node, pool, reclaim, spec
from tests.unit.control.test_on_demand import on_demand, spot_is_back
from tests.unit.control.test_setbacks import ATTEMPTS_AN_HOUR, Flapping

SLOW: dict[str, Any] = {"backoff": {"initialSeconds": 100, "maxSeconds": 150}}


def evicted(scene: Scene) -> Scene:
    """The attempt runs, and its machine throws it out."""
    scene.started()
    return scene.exit(143, disruption="TerminationByKubelet").run()


def backing_off(pools: list[str] | None = None, **fields: Any) -> Scene:
    """A job that was thrown out twice on pool a, so that it waits for that."""
    scene = Scene(spec(pools=pools or ["a", "b"], recovery=SLOW, **fields))
    if "b" in (pools or ["b"]):
        scene.used = {("b1", GPU): 4, ("b2", GPU): 4}
    evicted(scene)
    assert (scene.current.attempt, scene.current.pool) == (2, "a"), "a first one costs no time"
    return evicted(scene)


# Whose setback it is


def test_every_reason_that_is_counted_says_who_waits() -> None:
    assert set(WAITS) == (DISRUPTIONS | NOT_STARTED) - {"SpecChanged"}
    assert not any(of_the_pool(reason) for reason in FAILURES), "the program fails on every pool"
    assert not of_the_pool("WordOfSomebodyElse")


def test_while_a_pool_waits_another_is_tried_at_once() -> None:
    scene = backing_off()
    assert scene.current.attempt == 2
    scene.used = {}
    scene.run(1)
    assert (scene.current.attempt, scene.current.pool) == (3, "b")
    assert "a: not tried before" in scene.condition("CapacityAvailable").message
    assert (scene.status.next_try_at, scene.status.next_try_pool) == (None, None)


def test_where_no_other_has_room_the_status_says_which_pool_is_tried_when() -> None:
    scene = backing_off()
    (waits,) = scene.status.pool_backoffs
    assert (waits.pool, waits.setbacks, waits.reason) == ("a", 2, "NodePressure")
    assert (scene.status.next_try_at, scene.status.next_try_pool) == (waits.next_try_at, "a")
    due = scene.left(waits.next_try_at)
    assert 0 < due <= 100
    assert scene.why() == ("False", "NoCapacity")
    said = scene.condition().message
    assert f"next try at {waits.next_try_at} on pool a, or when a pool, a node or a pod changes" in said
    assert "b: 1 pods of 4 nvidia.com/gpu do not fit" in said
    assert scene.plan.wake_at == pytest.approx(scene.now + due, abs=0.002)
    scene.run(due)
    assert (scene.current.attempt, scene.current.pool, scene.status.next_try_at) == (3, "a", None)


def test_a_job_with_one_pool_waits_for_it() -> None:
    scene = backing_off(["a"])
    assert scene.why() == ("False", "BackOff")
    assert f"next try at {scene.status.next_try_at} on pool a after NodePressure" in scene.condition().message
    assert scene.status.next_try_pool == "a"
    assert scene.why("CapacityAvailable")[0] == "True", "it is not capacity that is missing"


def test_without_a_list_of_pools_too() -> None:
    scene = backing_off([])
    scene.run(1)
    assert (scene.current.attempt, scene.current.pool) == (2, "a")
    scene.used = {}
    scene.run(1)
    assert (scene.current.attempt, scene.current.pool) == (3, "b")


def test_what_the_program_does_delays_it_on_every_pool() -> None:
    scene = Scene(spec(recovery=SLOW)).started().exit(1).run()
    assert (scene.why(), scene.status.next_try_pool) == (("False", "BackOff"), None)
    assert 0 < scene.left(scene.status.next_try_at) <= 100
    assert scene.status.pool_backoffs == []


def test_what_a_user_or_a_quota_does_delays_it_on_every_pool() -> None:
    scene = Scene(spec(recovery=SLOW))
    for _ in range(2):
        scene.started().exit(143, deleting=True).run()
    assert (scene.current.attempt, scene.why(), scene.status.next_try_pool) == (2, ("False", "BackOff"), None)


def test_each_pool_waits_longer_each_time_and_by_itself() -> None:
    scene = Scene(spec(recovery=SLOW))
    seen: dict[str, list[float]] = {"a": [], "b": []}
    for _ in range(8):
        where = scene.run().current.pool
        evicted(scene)
        made = next(each for each in scene.status.pool_backoffs if each.pool == where)
        seen[where].append(scene.left(made.next_try_at) if made.next_try_at else 0.0)
        assert made.setbacks == len(seen[where])
        while scene.current.end is not None:
            scene.run(scene.left(scene.status.next_try_at))
    for waits in seen.values():
        assert waits[0] == 0, "a first one costs no time"
        assert all(0 < each <= min(150, 100 * 2**number) for number, each in enumerate(waits[1:])), waits
    assert min(map(len, seen.values())) >= 3, seen


def test_a_pool_on_which_it_ran_is_forgiven_and_the_other_is_not() -> None:
    scene = backing_off()
    scene.used = {}
    evicted(scene.run(1))
    assert {each.pool: each.setbacks for each in scene.status.pool_backoffs} == {"a": 2, "b": 1}
    scene.started().run(HEALTHY_SECONDS)
    where = scene.current.pool
    assert where == "b", "a waits still"
    scene.exit(143, disruption="TerminationByKubelet").run()
    assert {each.pool: each.setbacks for each in scene.status.pool_backoffs} == {"a": 2, "b": 1}


def test_what_is_long_ago_is_not_held_against_a_pool() -> None:
    scene = backing_off()
    scene.on_node("a1", schedulable=False).on_node("a2", schedulable=False)
    scene.run(100 + FORGOTTEN_SECONDS)
    scene.on_node("a1", schedulable=True)
    evicted(scene)
    assert [each.setbacks for each in scene.status.pool_backoffs] == [1]


def test_a_gang_that_is_not_whole_in_time_goes_on_to_the_next_pool_and_then_waits() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=1, recovery=SLOW)).run()
    tried = []
    while scene.current.end is None:
        tried.append(scene.current.pool)
        assert len(tried) < 9, "it never waits"
        scene.run(1).remove().run()
    assert tried[:4] == ["a", "b", "a", "b"]
    assert scene.why() == ("False", "BackOff")
    first = min(scene.status.pool_backoffs, key=lambda each: str(each.next_try_at))
    assert (scene.status.next_try_at, scene.status.next_try_pool) == (first.next_try_at, first.pool)


def test_a_suspended_job_has_no_next_try() -> None:
    scene = backing_off()
    scene.edit(suspend=True).run(1)
    assert (scene.status.next_try_at, scene.status.next_try_pool) == (None, None)


# On-demand machines


def test_a_spot_pool_that_waits_is_not_one_without_room() -> None:
    wanted = {"policy": "WhenNoSpot", "maxCost": "9.00", "afterSeconds": 0}
    scene = Scene(spec(recovery=SLOW, onDemand=wanted))
    scene.pools["b"] = pool("b", capacityType="OnDemand", pricePerNodeHour="4.00")
    for _ in range(2):
        evicted(scene)
    assert (scene.current.attempt, scene.status.next_try_pool, scene.status.fallback) == (2, "a", None)
    assert "b: on-demand, not before spot pool a has been tried again" in scene.condition().message
    scene.on_node("a1", schedulable=False).on_node("a2", schedulable=False)
    scene.run(scene.left(scene.status.next_try_at))
    assert (scene.current.attempt, scene.current.pool) == (3, "b")


def test_a_job_on_on_demand_machines_does_not_go_back_to_a_spot_pool_that_waits() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"})
    waits = PoolBackoff(
        pool="a",
        setbacks=3,
        reason="NodeLost",
        at=format_time(scene.now),
        next_try_at=format_time(scene.now + 100),
    )
    known = scene.status.model_copy(update={"pool_backoffs": [waits]})
    scene.job = dataclasses.replace(scene.job, status=known)
    spot_is_back(scene)
    scene.step(60)
    assert scene.status.fallback is None or scene.status.fallback.spot_since is None
    scene.step(60)
    assert scene.status.fallback is not None
    assert scene.status.fallback.spot_since == format_time(scene.now)


# The bound


@given(st.lists(st.floats(0, 300), max_size=200))
def test_no_hour_has_more_setbacks_than_the_bound_whatever_the_pools(rests: list[float]) -> None:
    now, paid, opened = NOW, None, []
    for rest in rests:
        opened.append(now)
        paid, free = pace(paid, now, 360.0)
        now = max(free, now + rest)
    for start in opened:
        assert sum(1 for at in opened if start <= at < start + 3600) <= ATTEMPTS_AN_HOUR


def test_the_bound_holds_however_many_pools_flap() -> None:
    pools = list("abcdefgh")
    flapping = Flapping("many", in_turn=True, pools=pools)
    for name in pools[2:]:
        flapping.scene.pools[name] = pool(name)
        flapping.scene.nodes[f"{name}1"] = node(f"{name}1", name)
    assert 20 <= flapping.hour() <= ATTEMPTS_AN_HOUR


def test_a_job_that_is_held_back_for_its_pace_says_so_of_every_pool() -> None:
    scene = Scene(spec())
    for number in range(60):
        if scene.status.next_try_at and scene.status.next_try_pool is None:
            break
        there = scene.started().current.nodes[0].name
        scene.mark(there, reclaim(scene.now - NOW + 60)).run()
        scene.exit(143).run()
        scene.mark(there, None).run()
        while scene.current.end is not None and scene.status.next_try_pool is not None:
            scene.run(scene.left(scene.status.next_try_at))
        assert number < 59, scene.status
    assert scene.why() == ("False", "BackOff")
    assert "on pool" not in scene.condition().message
    assert {each.pool for each in scene.status.pool_backoffs} == {"a", "b"}


def test_an_exit_that_the_program_asks_for_again_is_its_own() -> None:
    scene = Scene(spec(recovery={**SLOW, "retryableExitCodes": [42]}))
    for _ in range(2):
        scene.started().exit(42, exit=Exit(42, "Error", scene.now)).run()
    assert (scene.status.next_try_pool, scene.status.pool_backoffs) == (None, [])
