"""Which writes of the status may wait for the next, and that they do not wait for ever."""

import dataclasses
from typing import Any

import pytest

from spot_training.api.model import Condition
from spot_training.api.status import AttemptNode, Current, OnDemandRanks, SpotTrainingJobStatus, Stop, Terms
from spot_training.control.coalesce import (
    BUSY_WAIT_SECONDS,
    WAIT_SECONDS,
    is_progress,
    may_wait,
    wait_seconds,
)
from spot_training.control.world import Exit, Pod
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.operated import KEY, Operated
from tests.unit.control.sim import Sim

NOW = "2026-04-08T05:00:00.000Z"
CURRENT = Current(attempt=1, pool="a", opened_at=NOW)


def running(value: str, reason: str) -> Condition:
    return Condition(
        type="Running",
        status=value,
        reason=reason,
        message=reason,
        last_transition_time=NOW,
        observed_generation=1,
    )


BEFORE = SpotTrainingJobStatus(
    phase="Starting", ready="0/2", current=CURRENT, conditions=[running("False", "Starting")]
)


@pytest.mark.parametrize(
    "change",
    [
        {"ready": "1/2"},
        {"conditions": [running("False", "Unschedulable")]},
        {"current": CURRENT.model_copy(update={"nodes": [AttemptNode(index=0, name="n", uid="u")]})},
    ],
)
def test_progress_waits(change: Json) -> None:
    assert may_wait(BEFORE, BEFORE.model_copy(update=change))


def current(**fields: Any) -> Json:
    return {"current": CURRENT.model_copy(update=fields)}


PAID = Terms(capacity_type="OnDemand", budget_seconds=60)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "Running"},
        {"conditions": [running("True", "Running")]},
        {"conditions": [*BEFORE.conditions, running("False", "New").model_copy(update={"type": "New"})]},
        {"step": 5},
        current(attempt=2),
        current(started_at=NOW),
        current(completed=[0]),
        current(stop=Stop(cause="Suspended", cls="Suspended", at=NOW)),
    ],
)
def test_what_decides_anything_does_not(change: Json) -> None:
    assert not may_wait(BEFORE, BEFORE.model_copy(update={"ready": "1/2", **change}))


@pytest.mark.parametrize(
    "terms", [{"terms": PAID}, {"on_demand": OnDemandRanks(ranks=[0], pool="b", terms=PAID)}]
)
def test_where_a_machine_is_paid_from_a_budget_nothing_waits(terms: Json) -> None:
    before = BEFORE.model_copy(update=current(**terms))
    assert not may_wait(before, before.model_copy(update={"ready": "1/2"}))


MADE = Pod("ns", "job-1-0", "p-1", job="job", job_uid="j-1")


def changed(**fields: Any) -> Pod:
    return dataclasses.replace(MADE, **fields)


@pytest.mark.parametrize(
    "after",
    [
        changed(node="a1"),
        changed(node="a1", started_at=1.0, running=True),
        changed(trouble="ErrImagePull: no"),
        changed(gated=True),
    ],
)
def test_a_pod_that_comes_nearer_to_running_can_wait(after: Pod) -> None:
    assert is_progress(MADE if not after.gated else None, after, CURRENT)


@pytest.mark.parametrize(
    "after",
    [
        changed(ended=True),
        changed(exit=Exit(1, "Error", 1.0)),
        changed(deleting=True),
        changed(removed=True),
        changed(disruption="PreemptionByScheduler"),
        changed(gated=True),
    ],
)
def test_one_that_ends_or_may_end_or_is_held_or_let_go_by_a_queue_cannot(after: Pod) -> None:
    assert not is_progress(MADE, after, CURRENT)


def test_nor_can_one_whose_machine_is_paid_from_a_budget_or_whose_attempt_is_not_known() -> None:
    assert not is_progress(MADE, changed(node="a1"), CURRENT.model_copy(update={"terms": PAID}))
    assert not is_progress(MADE, changed(node="a1"), None)


def test_while_many_jobs_wait_progress_waits_longer_but_not_for_ever() -> None:
    assert wait_seconds(0) == wait_seconds(64) == WAIT_SECONDS
    assert wait_seconds(65) == wait_seconds(100_000) == BUSY_WAIT_SECONDS


async def test_a_gang_that_starts_is_told_in_few_writes_and_its_last_word_is_not_lost() -> None:
    pool = {
        "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
        "spec": {"nodeSelector": {"pool": "a"}},
    }
    job = raw_job()
    job["spec"]["replicas"] = 4
    sim = Sim(job, pool, ["a1", "a2", "a3", "a4"])
    operated = Operated(sim)
    await operated.reconcile()
    writes = version = 0
    for pod in list(sim.pods.values())[:3]:
        sim.bind(pod)
        sim.start(pod)
        operated.list()
        due = await operated.reconcile()
        writes += sim.job["metadata"]["resourceVersion"] != version
        version = sim.job["metadata"]["resourceVersion"]
    assert (writes, sim.job["status"]["ready"]) == (1, "1/4"), "the start is told, the others wait"
    assert due is not None
    assert 0 < due <= WAIT_SECONDS
    sim.now += due
    await operated.reconcile()
    assert sim.job["status"]["ready"] == "3/4"
    sim.now += 0.01
    last = sim.pods["job-1-3"]
    sim.bind(last)
    sim.start(last)
    operated.list()
    await operated.reconcile()
    assert (sim.job["status"]["phase"], sim.job["status"]["ready"]) == ("Running", "4/4")
    assert KEY in operated.cache.jobs.items
