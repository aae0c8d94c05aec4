"""On-demand machines on the real API server: announced before there is a pod, with deadlines that the budget pays for.

The claims are ones that no volume will ever bind, so the pods wait and nothing is spent.
"""

import pytest

from spot_training.api.times import parse_time
from tests.cluster.objects import Json
from tests.cluster.scene import (
    Place,
    applied,
    events,
    patched,
    pods,
    status,
    wait_for,
    wait_opened,
    wait_reason,
)
from tests.kit import jobs


@pytest.fixture(scope="module", autouse=True)
def _pools(place: Place) -> None:
    """A spot pool without nodes, and on-demand pools with one, one of which says nothing of its price."""
    applied(
        place.pool("spot", pricePerNodeHour="1.00", onDemandPricePerNodeHour="4.00"),
        place.pool("paid", here=True, capacityType="OnDemand", pricePerNodeHour="4.00"),
        place.pool("unknown", here=True, capacityType="OnDemand"),
    )


def job(place: Place, name: str, paid: str = "paid", **on_demand: object) -> Json:
    wanted = {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "2.00", **on_demand}
    pools = [f"{place.names}-spot", f"{place.names}-{paid}"]
    return place.job(name, pools=pools, onDemand=wanted, replicas=2)


def condition(place: Place, name: str, type_: str) -> Json:
    return jobs.condition(status(place.namespace, name), type_)


def test_it_is_announced_and_its_pods_have_the_deadlines_that_are_paid_for(place: Place) -> None:
    applied(place.claim("falls-back"), job(place, "falls-back"))
    wait_opened(place.namespace, "falls-back")
    current = status(place.namespace, "falls-back")["current"]
    assert current["pool"] == f"{place.names}-paid"
    # 2.00 pays for half an hour of one node; a pod that asks for no GPU is charged the whole of one.
    assert current["terms"]["budgetSeconds"] == 900
    said = condition(place, "falls-back", "OnDemand")
    assert (said["status"], said["reason"]) == ("True", "NoSpot")
    for pod in pods(place.namespace, "falls-back"):
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        late = parse_time(pod["metadata"]["creationTimestamp"]) - parse_time(current["openedAt"])
        limit = pod["spec"]["activeDeadlineSeconds"]
        assert 900 - grace - 15 - max(0.0, late) - 2 <= limit <= 900 - grace - 15
        assert pod["metadata"]["annotations"]["spot.training/budget-seconds"] == str(limit)
        assert parse_time(said["lastTransitionTime"]) <= parse_time(pod["metadata"]["creationTimestamp"]) + 1
    wait_for(
        place.namespace,
        "falls-back",
        "the Event",
        lambda: any(each["reason"] == "OnDemandFallback" for each in events(place.namespace, "falls-back")),
    )


def test_a_named_rank_is_on_demand_and_the_others_are_on_spot(place: Place) -> None:
    spot = place.pool("beside", here=True, pricePerNodeHour="1.00")
    applied(spot, place.claim("named"))
    pools = [f"{place.names}-beside", f"{place.names}-paid"]
    wanted = {"ranks": [0], "maxCost": "2.00"}
    applied(place.job("named", pools=pools, onDemand=wanted, replicas=2))
    wait_opened(place.namespace, "named")
    current = status(place.namespace, "named")["current"]
    assert (current["pool"], current["onDemand"]["pool"]) == (pools[0], pools[1])
    assert current["onDemand"]["ranks"] == [0]
    # 2.00 pays for half an hour of the one node.
    assert current["onDemand"]["terms"]["budgetSeconds"] == 1800
    said = condition(place, "named", "OnDemand")
    assert (said["status"], said["reason"]) == ("True", "Ranks")
    limits = {
        each["metadata"]["labels"]["spot.training/index"]: each["spec"].get("activeDeadlineSeconds")
        for each in pods(place.namespace, "named")
    }
    assert limits["1"] is None, "a pod on a spot machine has no deadline"
    assert 0 < limits["0"] < 1800
    wait_for(
        place.namespace,
        "named",
        "the Event",
        lambda: any(each["reason"] == "OnDemandRanks" for each in events(place.namespace, "named")),
    )


def test_too_little_money_is_said_and_more_of_it_mends_that(place: Place) -> None:
    applied(place.claim("poor"), job(place, "poor", maxCost="0.01"))
    wait_reason(place.namespace, "poor", "NoCapacity")
    said = condition(place, "poor", "BudgetExhausted")
    assert said["status"] == "True"
    assert "0.01 is left of onDemand.maxCost 0.01" in said["message"]
    assert pods(place.namespace, "poor") == []
    patched(place.namespace, "stj/poor", {"spec": {"onDemand": {"maxCost": "2.00"}}})
    wait_opened(place.namespace, "poor")
    assert condition(place, "poor", "BudgetExhausted")["status"] == "False"


def test_a_pool_without_a_price_is_not_used(place: Place) -> None:
    applied(place.claim("unpriced"), job(place, "unpriced", paid="unknown"))
    said = wait_reason(place.namespace, "unpriced", "NoCapacity")
    assert "its price is not known, so that onDemand.maxCost could not be held" in said["message"]


def test_a_job_that_wants_no_dear_machine_waits_and_says_so(place: Place) -> None:
    applied(
        place.claim("thriftier"),
        place.job("thriftier", pools=[f"{place.names}-spot"], maxPricePerNodeHour="0.50"),
    )
    said = wait_reason(place.namespace, "thriftier", "TooDear")
    assert "1.00 for a node hour is more than maxPricePerNodeHour, 0.50" in said["message"]


def test_going_back_on_it_gives_the_pods_back(place: Place) -> None:
    applied(place.claim("never-mind"), job(place, "never-mind"))
    wait_opened(place.namespace, "never-mind")
    patched(place.namespace, "stj/never-mind", {"spec": {"suspend": True}})
    wait_for(
        place.namespace,
        "never-mind",
        "its attempt ended",
        lambda: bool(status(place.namespace, "never-mind")["current"].get("end")),
    )
    assert condition(place, "never-mind", "OnDemand")["status"] == "False"
