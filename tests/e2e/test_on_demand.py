"""All spot nodes go at once: the job goes on on demand for as long as its budget lasts, then waits for spot ones."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

import pytest

from tests.kit import jobs, layout
from tests.kit.guest_agent import control
from tests.kit.kube import get, kubectl

NAME: Final = "all-gone"
SPOT: Final = [worker.name for worker in layout.WORKERS if worker.capacity_type == "spot"]
MAX_COST: Final = Decimal("4.00")


@pytest.fixture
def job() -> Iterator[None]:
    jobs.remove(NAME)
    jobs.fresh_claim(NAME)
    on_demand = {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": str(MAX_COST)}
    pools = ["spot-a", "spot-b", "on-demand"]
    jobs.start(
        jobs.torch_job(
            NAME,
            pools=pools,
            steps=200,
            seconds_per_step=0.1,
            save_every=1000,
            hurry_from=3,
            onDemand=on_demand,
        )
    )
    yield
    jobs.remove(NAME)


@pytest.mark.usefixtures("job")
def test_without_spot_machines_it_goes_on_on_demand_until_the_budget_is_used_up() -> None:
    jobs.wait_trained(NAME, 1, 20)
    for node in SPOT:
        control.reclaim(node, 60)
    state = jobs.wait_running(NAME, attempt=2)
    assert state["current"]["pool"] == "on-demand", jobs.describe(NAME)
    assert jobs.node_of(NAME, 2) not in SPOT
    assert jobs.condition(state, "OnDemand")["status"] == "True", state["conditions"]
    (pod,) = get("pods", "-l", f"spot.training/job={NAME},spot.training/attempt=2")
    # Half of a node at 12.00 an hour: forty minutes, less the grace and a margin.
    assert 2000 < pod["spec"]["activeDeadlineSeconds"] < 2400

    jobs.wait_trained(NAME, 2, 60)
    kubectl("patch", "stj", NAME, "--type=merge", "-p", '{"spec":{"onDemand":{"maxCost":"0.001"}}}')
    state = jobs.wait_for(
        NAME,
        "waits with its budget used up",
        lambda s: (
            (s["current"].get("end") or {}).get("reason") == "BudgetExhausted"
            and jobs.condition(s, "BudgetExhausted").get("status") == "True"
        ),
    )
    assert (state["current"]["attempt"], state["phase"]) == (2, "Recovering"), jobs.describe(NAME)
    assert (state["disruptions"], state["failures"]) == (1, 0)
    (reclaimed,) = state["timeline"]
    assert reclaimed["reason"] == "Reclaimed"
    assert reclaimed["savedStep"] == reclaimed["reachedStep"] == reclaimed["resumedStep"] >= 20
    saved = state["checkpoint"]["step"]
    assert saved >= 60

    for node in SPOT:
        control.withdraw(node)
    state = jobs.wait_finished(NAME)
    assert state["phase"] == "Succeeded", jobs.describe(NAME)
    assert state["current"]["attempt"] == 3
    assert state["current"]["pool"] in ("spot-a", "spot-b")
    assert f"resumed from step {saved} " in jobs.logs(NAME, 3), jobs.logs(NAME, 3)
    cost = state["cost"]
    assert Decimal(0) < Decimal(cost["onDemandSpent"]) < Decimal(cost["spent"]) < MAX_COST, cost
    assert Decimal(cost["spotHours"]) > 0 and Decimal(cost["onDemandHours"]) > 0, cost
