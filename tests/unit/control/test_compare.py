"""What a fresh list says is gone, and no watch has said so: forgotten, and what depends on it is looked at."""

from typing import Any, cast

import pytest

from spot_training.cluster.client import Client
from spot_training.control.follow import COUNT_SECONDS, LISTS, RESYNC_SECONDS
from spot_training.control.metrics import Metrics
from spot_training.control.operator import Operator
from tests.unit.control.objects import Json, raw_job, raw_node, raw_pod

OPEN: dict[str, Any] = {
    "phase": "Running",
    "current": {
        "attempt": 1,
        "pool": "a",
        "openedAt": "2026-04-08T05:00:00Z",
        "nodes": [{"index": 0, "name": "a1", "uid": "a1-uid"}],
    },
}
THERE: dict[str, Json] = {
    "jobs": raw_job(**OPEN),
    "pools": {
        "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1"},
        "spec": {"nodeSelector": {"pool": "a"}},
    },
    "nodes": raw_node("a1"),
    "claims": {
        "metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"},
        "spec": {},
    },
    "pods": raw_pod(),
    "volumes": {"metadata": {"name": "pv-1", "uid": "v", "resourceVersion": "1"}, "spec": {}},
}


class Lists:
    """An API server that only lists, and says what it is asked."""

    def __init__(self) -> None:
        self.items = {LISTS[kind]: [raw] for kind, raw in THERE.items()}
        self.meanwhile: list[tuple[Operator, str, Json]] = []
        self.clock_offset = 0.0
        self.metadata: Json = {}

    async def get(self, path: str, **_: Any) -> Json:
        answer = list(self.items[path])
        for operator, kind, raw in self.meanwhile:
            operator.take(kind, "ADDED", raw)
        return {"metadata": {"resourceVersion": "20", **self.metadata}, "items": answer}


@pytest.fixture
def lists() -> Lists:
    return Lists()


@pytest.fixture
async def operator(lists: Lists) -> Operator:
    """An operator that knows one of each, and has looked at all."""
    made = Operator(cast(Client, lists), Metrics())
    made.rest()
    for kind, raw in THERE.items():
        made.take(kind, None, raw)
    made.jobs.open()
    made.pools.open()
    return made


async def compared(operator: Operator, kind: str) -> None:
    assert await operator.follower._compare(kind) == RESYNC_SECONDS


@pytest.mark.parametrize("kind", LISTS)
async def test_what_is_there_stays_and_sets_nothing_in_motion(operator: Operator, kind: str) -> None:
    await compared(operator, kind)
    assert len(operator.follower._known(kind)) == 1
    assert (len(operator.jobs), len(operator.pools)) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "looks"), [("nodes", 1), ("pods", 1), ("jobs", 0), ("pools", 0), ("claims", 1), ("volumes", 0)]
)
async def test_what_is_gone_is_forgotten_and_its_job_is_looked_at(
    operator: Operator, lists: Lists, kind: str, looks: int
) -> None:
    lists.items[LISTS[kind]] = []
    await compared(operator, kind)
    assert not operator.follower._known(kind)
    assert len(operator.jobs) == looks


@pytest.mark.parametrize(
    ("items", "metadata", "compares"),
    [
        (0, {}, True),
        (1, {}, False),
        (0, {"remainingItemCount": 0}, True),
        (1, {"remainingItemCount": 4, "continue": "more"}, False),
        (0, {"continue": "more"}, False),
    ],
)
async def test_what_is_fewer_than_is_known_is_compared(
    operator: Operator, lists: Lists, items: int, metadata: Json, compares: bool
) -> None:
    lists.items[LISTS["jobs"]] = [THERE["jobs"]][:items]
    lists.metadata = metadata
    assert await operator.follower._count("jobs") == COUNT_SECONDS
    assert ("jobs" in operator.follower._lists._timers) is compares


async def test_a_pod_that_is_gone_leaves_what_was_last_seen_of_it(operator: Operator, lists: Lists) -> None:
    lists.items[LISTS["pods"]] = []
    await compared(operator, "pods")
    (last,) = operator.cache.pods_of("j-1")
    assert last.removed and last.started_at is not None and not last.running


@pytest.mark.parametrize("kind", sorted(LISTS.keys() - {"volumes"}))
async def test_what_was_answered_before_the_list_and_comes_after_it_brings_nothing_back(
    operator: Operator, lists: Lists, kind: str
) -> None:
    lists.items[LISTS[kind]] = []
    await compared(operator, kind)
    raw = THERE[kind]
    operator.take(kind, None, {**raw, "metadata": {**raw["metadata"], "resourceVersion": "19"}})
    assert not operator.follower._known(kind), "no watch would take that away again"


@pytest.mark.parametrize("kind", sorted(LISTS.keys() - {"volumes"}))
async def test_nor_does_what_was_answered_before_a_deletion_that_a_watch_told_of(
    operator: Operator, kind: str
) -> None:
    """Of a job's versions kopf passes on the newest, so the last may be one that was never seen."""

    def of_version(version: int) -> Json:
        return {**THERE[kind], "metadata": {**THERE[kind]["metadata"], "resourceVersion": str(version)}}

    operator.take(kind, "DELETED", of_version(20))
    operator.take(kind, None, of_version(19))
    assert not operator.follower._known(kind)


async def test_what_came_while_the_list_was_made_is_no_ghost(operator: Operator, lists: Lists) -> None:
    lists.meanwhile = [(operator, "nodes", raw_node("late", version=9))]
    await compared(operator, "nodes")
    assert sorted(operator.cache.nodes.items) == ["a1", "late"]


async def test_what_changed_while_the_list_was_made_is_no_ghost(operator: Operator, lists: Lists) -> None:
    lists.items[LISTS["nodes"]] = []
    lists.meanwhile = [(operator, "nodes", raw_node("a1", version=9, ready="False"))]
    await compared(operator, "nodes")
    assert not operator.cache.nodes.items["a1"].ready


async def test_what_was_changed_unseen_is_taken_in(operator: Operator, lists: Lists) -> None:
    lists.items[LISTS["nodes"]] = [raw_node("a1", version=9, ready="False")]
    await compared(operator, "nodes")
    assert not operator.cache.nodes.items["a1"].ready
    assert len(operator.jobs) == 1
