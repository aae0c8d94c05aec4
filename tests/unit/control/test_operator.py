"""What events set in motion: whom they wake, and how often."""

import asyncio
from typing import cast

import pytest

from spot_training.cluster.client import Client
from spot_training.control.metrics import Metrics
from spot_training.control.operator import Operator
from spot_training.control.policies.demand import Request
from tests.unit.control.objects import Json, raw_job, raw_node, raw_pod
from tests.unit.control.sim import Sim

POOL = {
    "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1"},
    "spec": {"nodeSelector": {"pool": "a"}},
}


@pytest.fixture
def operator() -> Operator:
    made = Operator(cast(Client, Sim(raw_job(), POOL, [])), Metrics())
    for name in ("one", "two"):
        made.cache.jobs.put(raw_job(name, f"j-{name}"))
    return made


async def test_who_has_not_renewed_the_lease_in_time_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leading = [False]
    made = Operator(cast(Client, Sim(raw_job(), POOL, [])), Metrics(), lambda: leading[0])
    looked: list[object] = []

    async def look(key: object) -> None:
        looked.append(key)

    monkeypatch.setattr(made.reconciler, "reconcile", look)
    made.jobs.open()
    made.jobs.add(("ns", "one"))
    running = asyncio.create_task(made.jobs.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert looked == []
    leading[0] = True
    async with asyncio.timeout(20):
        while not looked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    assert looked == [("ns", "one")], "it was looked at as soon as it might be"


async def test_what_comes_in_one_turn_of_the_loop_is_decided_about_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.cache.pools.put(POOL)
    for job in operator.cache.jobs.items.values():
        request = Request(job.spec.replicas, job.spec.template.spec, job.spec.pools)
        choice = operator.placer.decide(job, request)
        assert choice is not None
        assert choice.pool is None
    passes: list[int] = []
    decided = operator.placer._pass

    def counted() -> None:
        passes.append(1)
        decided()

    monkeypatch.setattr(operator.placer, "_pass", counted)
    for number in range(100):
        operator.take("nodes", "ADDED", raw_node(f"a{number}"))
    assert (len(operator.jobs), passes) == (0, [])
    await asyncio.sleep(0.001)
    assert (len(operator.jobs), passes) == (2, [1])


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("pods", raw_pod(containerStatuses=[{"name": "main", "state": {"running": {"startedAt": "noon"}}}])),
        ("pods", raw_pod(conditions=7)),
        ("nodes", {"metadata": {"name": "a1", "resourceVersion": "x"}}),
        ("jobs", raw_job(version=9) | {"spec": None}),
        ("claims", {"metadata": {"name": "claim", "namespace": "ns", "resourceVersion": "1"}}),
    ],
    ids=["a time", "a type", "a version", "no spec", "no UID"],
)
async def test_one_object_that_cannot_be_read_stops_nobody(
    operator: Operator, kind: str, broken: Json, caplog: pytest.LogCaptureFixture
) -> None:
    operator.take(kind, "MODIFIED", broken)
    assert broken["metadata"]["name"] in caplog.text
    operator.take("nodes", "ADDED", raw_node("a2"))
    assert "a2" in operator.cache.nodes.items


async def test_a_claim_wakes_the_jobs_that_name_it(operator: Operator) -> None:
    raw = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"}}
    operator.take("claims", "ADDED", raw | {"metadata": raw["metadata"] | {"namespace": "elsewhere"}})
    assert len(operator.jobs) == 0
    operator.take("claims", "ADDED", raw)
    assert len(operator.jobs) == 2


async def test_jobs_are_begun_before_others_are_told_to_be_nearer_to_running_but_not_before_those_that_end(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []

    async def look(key: tuple[str, str]) -> None:
        looked.append(key[1])

    monkeypatch.setattr(operator.reconciler, "reconcile", look)
    current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    for name in ("job", "ending"):
        operator.cache.jobs.put(raw_job(name, f"j-{name}", current=current))
    operator.take("pods", "ADDED", raw_pod())
    ending = raw_pod("ending-1-0", uid="p-2")
    ending["metadata"]["labels"] |= {"spot.training/job": "ending", "spot.training/job-uid": "j-ending"}
    ending["metadata"]["ownerReferences"][0] |= {"name": "ending", "uid": "j-ending"}
    ending["metadata"]["deletionTimestamp"] = "2026-04-08T05:01:00Z"
    operator.take("pods", "ADDED", ending)
    for name in ("one", "two"):
        operator.jobs.add(("ns", name))
    running = asyncio.create_task(operator.jobs.run())
    async with asyncio.timeout(20):
        while len(looked) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    assert looked == ["ending", "one", "two", "job"]


async def test_another_price_is_shown_by_the_pools(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.cache.pools.put(POOL)
    reported: list[object] = []
    monkeypatch.setattr(operator.pools, "add_after", lambda name, _: reported.append(name))
    operator.prices_changed()
    assert reported == ["a"]


async def test_a_job_that_names_another_claim_wakes_those_that_wait_for_its_own(operator: Operator) -> None:
    edited = raw_job("one", "j-one", version=4)
    edited["spec"]["checkpoint"]["claimName"] = "another"
    operator.take("jobs", "MODIFIED", edited)
    assert len(operator.jobs) == 2, "the job itself, and the other that names the claim it had"


async def test_a_new_job_under_an_old_ones_name_sets_free_what_the_old_one_had(operator: Operator) -> None:
    renewed = raw_job("one", "j-three", version=9)
    renewed["spec"]["checkpoint"]["claimName"] = "another"
    operator.take("jobs", "MODIFIED", renewed)
    assert len(operator.jobs) == 2
