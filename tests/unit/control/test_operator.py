"""What events set in motion: whom they wake, and how often."""

import asyncio
from typing import cast

import pytest

from spot_training.cluster.client import Client
from spot_training.control.metrics import Metrics
from spot_training.control.operator import Operator
from tests.unit.control.objects import raw_job, raw_node
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


async def test_what_comes_in_one_turn_of_the_loop_wakes_the_waiting_jobs_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    waiting = operator.cache.waiting

    def counted() -> list[tuple[str, str]]:
        woken.append(1)
        return waiting()

    monkeypatch.setattr(operator.cache, "waiting", counted)
    for number in range(100):
        operator.take("nodes", "ADDED", raw_node(f"a{number}"))
    assert (len(operator.jobs), woken) == (0, [])
    await asyncio.sleep(0)
    assert (len(operator.jobs), woken) == (2, [1])
    operator.take("nodes", "ADDED", raw_node("late"))
    await asyncio.sleep(0)
    assert woken == [1, 1], "the next turn wakes them again"


async def test_a_claim_wakes_the_jobs_that_name_it(operator: Operator) -> None:
    raw = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"}}
    operator.take("claims", "ADDED", raw | {"metadata": raw["metadata"] | {"namespace": "elsewhere"}})
    assert len(operator.jobs) == 0
    operator.take("claims", "ADDED", raw)
    assert len(operator.jobs) == 2
