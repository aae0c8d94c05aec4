"""What a pool's status says: counts, interruptions and their rate, the breaker, who uses it, overlaps."""

import dataclasses
import math
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.api.pool import Interruptions, SpotPoolStatus
from spot_training.api.status import AttemptNode, Current, SpotTrainingJobStatus
from spot_training.api.times import format_time, parse_time
from spot_training.cluster.client import Client
from spot_training.control.cache import Cache
from spot_training.control.conditions import find
from spot_training.control.policies.interruptions import (
    Signs,
    bring_forward,
    interruption_rate,
    marks_of,
    next_change,
)
from spot_training.control.pools import PoolReporter
from spot_training.control.poolstatus import Seen, next_look, pool_status
from spot_training.control.world import Node, Pool
from tests.unit.control.build import NOW, job, node, pool, reclaim
from tests.unit.control.objects import Json, merged, raw_node

LIMITED = pool("a", maxInterruptionsPerHour=2)


def taken(name: str, id_: str = "n-1", **fields: Any) -> Node:
    notice = dataclasses.replace(reclaim(60.0, id_), **fields)
    return node(name, notice=notice, schedulable=False)


def look(made: Pool, *members: Node, now: float = NOW, **fields: Any) -> Pool:
    """The pool with the status that is written for these nodes, as it comes back from the API server."""
    free = {each.name: 4 for each in members}
    status = pool_status(made, Seen(members, free, **fields), now)
    return dataclasses.replace(made, status=SpotPoolStatus.model_validate(status.to_json()))


def said(made: Pool, type_: str) -> tuple[str, str]:
    found = find(made.status.conditions, type_)
    assert found is not None, made.status.conditions
    return found.status, found.reason


def test_nodes_gpus_and_whether_there_is_room() -> None:
    made = look(pool("a"), node("a1"), node("a2", ready=False), taken("a3"))
    status = made.status
    assert (status.nodes.total, status.nodes.ready, status.nodes.reclaiming) == (3, 2, 1)
    assert (status.gpus.total, status.gpus.free) == (4, 4)
    condition = find(status.conditions, "Available")
    assert condition is not None
    assert condition.message == "Currently available (1)"
    assert said(look(made, taken("a3")), "Available") == ("False", "NoCapacity")


def test_a_pool_that_matches_nothing() -> None:
    made = look(pool("a"))
    assert said(made, "Available") == ("False", "NoNodes")


def test_a_notice_is_one_interruption_however_often_it_is_seen() -> None:
    made = pool("a")
    for after in (0.0, 1.0, 700.0):
        made = look(made, taken("a1"), node("a2"), now=NOW + after)
    assert (made.status.interruptions.last_hour, made.status.interruptions.last_day) == (1, 1)
    made = look(made, taken("a1", "n-2"), node("a2"), now=NOW + 701)
    assert made.status.interruptions.last_hour == 2, "another notice"
    made = look(made, taken("a1", "n-2"), taken("a2", "n-2"), now=NOW + 702)
    assert made.status.interruptions.last_hour == 3, "the same notice, another machine"


def test_a_machine_that_comes_back_under_the_same_name_is_another() -> None:
    made = look(pool("a"), taken("a1"))
    again = dataclasses.replace(taken("a1"), uid="new")
    assert look(made, again, now=NOW + 1).status.interruptions.last_hour == 2


def test_marks_of_autoscalers_say_nothing_of_spot() -> None:
    assert marks_of([taken("a1", source="ClusterAutoscaler"), taken("a2", source="Karpenter")]) == {}
    assert len(marks_of([taken("a1", source="GKE"), taken("a2")])) == 2


def test_counts_leave_the_hour_and_the_day() -> None:
    made = look(pool("a"), taken("a1"))
    shown = [
        (status.last_hour, status.last_day)
        for after in (3500, 3700, 86_000, 92_000)
        if (status := look(made, node("a2"), now=NOW + after).status.interruptions)
    ]
    assert shown == [(1, 1), (0, 1), (0, 1), (0, 0)]
    assert next_change(made.status.interruptions, NOW) <= 900
    assert NOW + next_change(made.status.interruptions, NOW + 3500) + 3500 <= NOW + 3661


def test_the_rate_is_the_documented_formula() -> None:
    made = look(pool("a"), *(node(f"a{number}") for number in range(10)))
    assert made.status.interruptions.rate_per_node_hour == "0.020", "nothing is known yet"
    members = [taken("a0"), *(node(f"a{number}") for number in range(1, 10))]
    made = look(made, *members, now=NOW + 6 * 3600)
    hours = 10 * 6 / math.log(2) * 0.5
    known = made.status.interruptions
    assert float(known.events) == 1
    assert float(known.node_hours) == pytest.approx(hours, rel=1e-4)
    assert known.rate_per_node_hour == f"{1.2 / (hours + 10):.3f}"
    later = interruption_rate(made.status, NOW + 12 * 3600)
    assert later == pytest.approx((0.5 + 0.2) / (hours / 2 + hours + 10), rel=1e-3)


@given(st.lists(st.floats(0, 20_000), max_size=12))
def test_looking_more_often_changes_nothing(steps: list[float]) -> None:
    """The rate after any number of looks is that after one, and so is the count."""
    once, often, now = Interruptions(as_of=format_time(NOW)), Interruptions(as_of=format_time(NOW)), NOW
    for step in steps:
        now += math.floor(step)
        often = bring_forward(often, 4, Signs(), 4, now)
    seen = Signs({"m": None})
    once = bring_forward(once, 4, seen, 5, now)
    often = bring_forward(often, 4, seen, 5, now)
    assert float(once.node_hours) == pytest.approx(float(often.node_hours), abs=0.02)
    assert (once.last_hour, once.last_day) == (often.last_hour, often.last_day) == (1, 1)
    assert bring_forward(often, 5, seen, 5, now) is often, "nothing to write"


def test_the_breaker_opens_above_the_limit_and_closes_when_enough_have_left_the_hour() -> None:
    made = LIMITED
    for number in range(3):
        members = [taken(f"a{each}", noticed_at=NOW + 60 * each) for each in range(number + 1)]
        made = look(made, *members, now=NOW + 60 * number)
        assert said(made, "BreakerOpen")[0] == str(number == 2)
    condition = find(made.status.conditions, "BreakerOpen")
    assert condition is not None
    until = parse_time(condition.message.rsplit(" ", 1)[1])
    assert NOW + 3600 <= until <= NOW + 3660, "the first of three has left by then"
    assert next_look(made, NOW + 121) <= until - NOW - 121
    assert said(look(made, node("a9"), now=until - 1), "BreakerOpen") == ("True", "TooManyInterruptions")
    assert said(look(made, node("a9"), now=until + 1), "BreakerOpen") == ("False", "Closed")


def test_who_uses_it() -> None:
    users = [dataclasses.replace(job(), name=f"job{number:02}") for number in range(20)]
    made = look(pool("a"), node("a1"), users=tuple(users))
    assert made.status.jobs.count == 20
    assert made.status.jobs.names[:2] == ["ns/job00", "ns/job01"]
    assert len(made.status.jobs.names) == 16


def test_overlapping_pools_are_told_of_each_other() -> None:
    made = look(pool("a"), node("a1"), overlaps=(("a1", "b"),))
    condition = find(made.status.conditions, "Overlapping")
    assert condition is not None
    assert "1 nodes are also in b: a1" in condition.message
    assert said(look(made, node("a1")), "Overlapping") == ("False", "NoSharedNodes")
    assert find(look(pool("a"), node("a1")).status.conditions, "Overlapping") is None


def test_a_node_that_changes_pools_under_an_attempt() -> None:
    ref = AttemptNode(index=0, name="a1", uid="a1-uid")
    current = Current(attempt=1, pool="a", opened_at=format_time(NOW), nodes=[ref])
    user = dataclasses.replace(job(), status=SpotTrainingJobStatus(current=current))
    made = look(pool("a"), node("a2"), users=(user,))
    condition = find(made.status.conditions, "NodesElsewhere")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "NodesLeft")
    assert "run on a1, which nodeSelector does not match now: ns/job" in condition.message
    assert said(look(made, node("a1"), users=(user,)), "NodesElsewhere") == ("False", "NoNodesLeft")


@pytest.mark.parametrize(
    ("own", "file", "usual", "nodes", "shown"),
    [
        ("3", {}, "3.20", 1, "3.00"),
        (None, {}, "3.20", 2, "3.20"),
        (None, {"a": "2.5"}, "3.20", 2, "2.50"),
        ("3", {"a": "2.5"}, "3.20", 2, "2.50-3.00"),
        ("3", {}, None, 2, "3.00"),
        (None, {"a": "2.5"}, None, 0, "2.50"),
        (None, {}, None, 2, None),
    ],
)
def test_what_a_node_costs_now(
    own: str | None, file: dict[str, str], usual: str | None, nodes: int, shown: str | None
) -> None:
    members = [
        node(f"a{number}", price=Decimal(own) if own and not number else None) for number in range(nodes)
    ]
    about = {"pricePerNodeHour": usual} if usual else {}
    prices = {name: Decimal(price) for name, price in file.items()}
    made = look(pool("a", **about), *members, prices=prices).status.price
    assert (made.shown if made is not None else None) == shown
    if made is not None:
        assert Decimal(made.lowest) <= Decimal(made.highest)


class _Server:
    """Keeps one pool, as the API server does."""

    def __init__(self, raw: Json) -> None:
        self.raw, self.writes = raw, 0

    async def patch(self, path: str, body: Json) -> Json:
        self.writes += 1
        version = int(self.raw["metadata"]["resourceVersion"]) + 1
        self.raw = self.raw | {
            "metadata": self.raw["metadata"] | {"resourceVersion": str(version)},
            "status": merged(self.raw.get("status") or {}, body["status"]),
        }
        return self.raw


async def test_an_operator_that_starts_anew_counts_nothing_twice_and_writes_nothing() -> None:
    server = _Server(
        {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
            "spec": {"nodeSelector": {"pool": "a"}, "maxInterruptionsPerHour": 1},
        }
    )
    marks = {"spot.training/notice-id": "n-1", "spot.training/noticed-at": format_time(NOW)}
    taints = [{"key": "spot.training/reclaim", "value": "terminate", "effect": "NoSchedule"}]
    told: list[int] = []
    for _ in range(3):
        cache = Cache()
        cache.pools.put(server.raw)
        for name in ("a1", "a2"):
            cache.nodes.put(raw_node(name, annotations=marks, taints=taints, unschedulable=True))
        reporter = PoolReporter(cast(Client, server), cache, lambda: NOW + 1, lambda: told.append(1))
        assert await reporter.report("a") is not None
        assert cache.pools.items["a"].status.interruptions.last_hour == 2
    assert (server.writes, told) == (1, [1])


@pytest.mark.parametrize(("took", "pause"), [(0.001, 1.0), (0.05, 2.5), (1.0, 5.0)])
async def test_what_takes_long_to_count_is_counted_less_often(
    monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    times = iter((7.0, 7.0 + took))
    monkeypatch.setattr("spot_training.control.pools.time.thread_time", lambda: next(times))
    raw = {
        "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
        "spec": {"nodeSelector": {"pool": "a"}},
    }
    cache = Cache()
    cache.pools.put(raw)
    reporter = PoolReporter(cast(Client, _Server(raw)), cache, lambda: NOW)
    assert reporter.pause("a") == 1.0
    await reporter.report("a")
    assert reporter.pause("a") == pytest.approx(pause)
