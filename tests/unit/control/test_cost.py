"""What a job has cost: pod time, times the node's price, times the pod's part of the node; once each, to the second."""

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from spot_training.api.status import Bill, Cost, SpotTrainingJobStatus, Terms
from spot_training.control.policies.budget import share
from spot_training.control.policies.cost import Sums, Used, cost, hours
from spot_training.control.spending import REFRESH_SECONDS
from spot_training.control.world import Ask
from tests.unit.control.build import Scene, node, pool, spec

SPOT = Terms(capacity_type="Spot", gpus_per_pod=2, on_demand_price="4.00")
HOUR = 3600.0


def used(seconds: float, price: str | None = "1.00", gpus: int = 4) -> Used:
    return Used(0, "a1", Decimal(price) if price is not None else None, gpus, seconds)


@pytest.mark.parametrize(
    ("per_pod", "of_node", "part"), [(4, 4, "1"), (2, 4, "0.5"), (0, 4, "1"), (2, 0, "1"), (8, 4, "1")]
)
def test_a_pod_has_the_part_of_a_node_that_its_gpus_are(per_pod: int, of_node: int, part: str) -> None:
    assert share(per_pod, of_node) == Decimal(part)


def test_the_formula() -> None:
    made = cost([used(HOUR), used(HOUR / 2, "3.00")], SPOT)
    assert hours(used(HOUR), SPOT) == Decimal("0.5")
    assert made.spot_hours == Decimal("0.75")
    assert made.spent == Decimal("0.5") + Decimal("0.75")
    assert made.on_demand_equivalent == 3
    assert made.on_demand_spent == made.unpriced_hours == 0
    assert made.saved_percent() == 58


def test_on_demand_machines_save_nothing() -> None:
    made = cost([used(HOUR)], Terms(capacity_type="OnDemand", gpus_per_pod=2))
    assert (made.on_demand_hours, made.spent, made.on_demand_spent) == (Decimal("0.5"),) * 3
    assert made.saved_percent() == 0


def test_without_an_on_demand_price_nothing_is_claimed_to_be_saved() -> None:
    assert cost([used(HOUR)], Terms(gpus_per_pod=2)).saved_percent() == 0


def test_hours_without_a_price_are_in_no_sum_of_money() -> None:
    made = cost([used(HOUR, None), used(HOUR)], SPOT)
    assert (made.spent, made.on_demand_equivalent) == (Decimal("0.5"), Decimal(2))
    assert (made.spot_hours, made.unpriced_hours) == (Decimal(1), Decimal("0.5"))
    assert Sums().saved_percent() is None


# What the planner writes


def priced(replicas: int = 1, gpus: int = 4, **fields: Any) -> Scene:
    scene = Scene(spec(replicas, gpus, **fields))
    scene.pools = {
        "a": pool("a", pricePerNodeHour="1.00", onDemandPricePerNodeHour="4.00"),
        "b": pool("b", pricePerNodeHour="2.00"),
    }
    return scene


def running(scene: Scene) -> Scene:
    """The attempt's pods were accepted 10 s ago, and all of them run."""
    scene.run()
    for index in range(scene.job.spec.replicas):
        scene.change(index, accepted_at=scene.now, started_at=scene.now + 10, running=True, created=scene.now)
    scene.step(10)
    assert scene.status.phase == "Running"
    return scene


def bill(scene: Scene) -> Cost:
    assert scene.status.cost is not None
    return scene.status.cost


def end(scene: Scene, code: int = 143, index: int = 0, after: float = 0.0) -> Scene:
    scene.now += after
    return scene.exit(code, index, ended_at=scene.now)


def test_before_a_machine_is_used_there_is_no_bill() -> None:
    scene = priced()
    scene.run()
    scene.step(60)
    assert scene.status.cost is None


def test_a_machine_is_paid_for_from_when_its_kubelet_took_the_pod_in() -> None:
    scene = running(priced())
    assert bill(scene).spot_hours == "0.002778"
    (ref,) = scene.current.nodes
    assert (scene.left(ref.start), ref.price, ref.gpus, ref.end) == (-10.0, "1.00", 4, None)


def test_the_price_is_that_of_the_machines_start() -> None:
    scene = running(priced())
    scene.prices = {"a": Decimal("50.00")}
    end(scene, after=HOUR - 10).step()
    assert bill(scene).spent == "1.00"
    scene.run(400)
    assert bill(scene).spent == "1.00"


def test_the_bill_is_brought_up_to_date_every_few_minutes_and_not_more_often() -> None:
    scene = running(priced())
    before = scene.status
    scene.step(REFRESH_SECONDS - 1)
    assert scene.status == before
    assert scene.plan.wake_at == scene.now + 1
    scene.step(1)
    assert bill(scene).spot_hours == "0.086111"
    assert scene.left(bill(scene).as_of) == 0
    assert scene.plan.wake_at == scene.now + REFRESH_SECONDS


def test_whatever_else_is_written_brings_it_up_to_date_too() -> None:
    scene = running(priced(replicas=2))
    end(scene, code=0, index=1, after=80).step()
    assert bill(scene).spot_hours == "0.05"
    scene.step(REFRESH_SECONDS)
    # The one that has ended costs no more.
    assert bill(scene).spot_hours == "0.133333"


def test_an_attempt_is_entered_once_however_often_it_is_looked_at_and_by_whom() -> None:
    scene = running(priced())
    end(scene, after=HOUR - 10).step()
    first = bill(scene)
    assert (first.spot_hours, first.spent, first.on_demand_equivalent, first.saved_percent) == (
        "1.00",
        "1.00",
        "4.00",
        75,
    )
    for _ in range(3):
        # A new operator has nothing but the status.
        scene.pods = {name: pod for name, pod in scene.pods.items() if not pod.ended}
        scene.run(20)
        assert bill(scene).ended == first.ended


def test_attempts_add_up_over_pools_and_restarts() -> None:
    scene = running(priced())
    scene.on_node("a1", schedulable=False)
    scene.on_node("a2", schedulable=False)
    end(scene, code=137, after=HOUR - 10).step()
    while scene.current.attempt == 1:
        scene.run(20)
    assert scene.current.pool == "b"
    running(scene)
    end(scene, code=0, after=HOUR / 2 - 10).step()
    assert scene.status.phase == "Succeeded"
    made = bill(scene)
    assert (made.spot_hours, made.spent) == ("1.50", "2.00")
    assert made.on_demand_equivalent == "5.00", "pool b says nothing of on-demand: 1.00 there, 4.00 in a"
    assert [(each.attempt, each.pool, each.spent) for each in made.attempts] == [
        (1, "a", "1.00"),
        (2, "b", "1.00"),
    ]
    assert [each.saved_percent for each in made.attempts] == [75, 0]
    assert [each.on_demand_equivalent for each in made.attempts[0].nodes] == ["4.00"]
    (on,) = made.attempts[1].nodes
    assert (on.index, on.price, on.hours, on.spent) == (0, "2.00", "0.50", "1.00")


def test_a_pod_of_half_a_node_costs_half() -> None:
    scene = running(priced(gpus=2))
    end(scene, after=HOUR - 10).step()
    assert (bill(scene).spot_hours, bill(scene).spent) == ("0.50", "0.50")


def test_a_template_that_is_edited_meanwhile_does_not_change_what_was_agreed() -> None:
    scene = running(priced(gpus=2))
    scene.edit(template=spec(gpus=4).template.to_json())
    end(scene, after=HOUR - 10).step()
    assert bill(scene).spent == "0.50"


@pytest.mark.parametrize("gone", [True, False])
def test_a_vanished_machine_is_paid_for_up_to_its_last_lease_renewal(gone: bool) -> None:
    scene = running(priced())
    name, renewed = scene.pod().node, scene.now + 90
    scene.leases[name] = renewed
    scene.now += 300
    if gone:
        del scene.nodes[name]
    else:
        scene.on_node(name, ready=False, ready_since=scene.now - 100)
    scene.step()
    assert Ask.LEASES in scene.asked
    assert scene.current.attempt == 2 or scene.current.end is not None
    assert Decimal(bill(scene).spot_hours) * 3600 == pytest.approx(Decimal(100), abs=Decimal("0.01"))


def test_another_machine_under_the_name_renews_the_lease_of_the_old_one() -> None:
    scene = running(priced())
    name = scene.pod().node
    scene.nodes[name] = node(name, "a", uid="another")
    scene.leases[name] = scene.now + 500
    scene.step(50)
    assert Decimal(bill(scene).spot_hours) * 3600 == pytest.approx(Decimal(60), abs=Decimal("0.01"))


def test_a_silent_machine_is_not_charged_for_while_nobody_knows() -> None:
    scene = running(priced(recovery={"nodeLostAfterSeconds": 4000, "assumeGoneAfterSeconds": 4000}))
    scene.on_node(scene.pod().node, ready=False, ready_since=scene.now + 20)
    scene.step(3 * REFRESH_SECONDS)
    assert bill(scene).spot_hours == "0.008333", "10 s and 20 s"


def test_a_pod_that_vanished_on_a_live_machine_ended_when_it_was_to_be_killed() -> None:
    scene = running(priced())
    scene.change(deleting=True, kill_at=scene.now + 55)
    scene.run(1)
    scene.remove()
    scene.step(200)
    assert Decimal(bill(scene).spot_hours) * 3600 == pytest.approx(Decimal(65), abs=Decimal("0.01"))


def test_the_attempts_in_the_bill_are_bounded_and_its_sum_is_not() -> None:
    scene = priced(recovery={"maxFailures": 100, "backoff": {"initialSeconds": 1, "maxSeconds": 1}})
    for number in range(1, 15):
        while scene.status.current is None or scene.current.attempt < number:
            scene.run(2)
        running(scene)
        end(scene, code=1, after=350).step()
    made = bill(scene)
    assert [each.attempt for each in made.attempts] == list(range(5, 15))
    assert made.spot_hours == "1.40"


def test_the_status_of_an_older_version_is_understood() -> None:
    scene = running(priced())
    older = scene.status.to_json()
    del older["cost"], older["current"]["terms"]
    for ref in older["current"]["nodes"]:
        del ref["gpus"], ref["start"]
    scene.job = dataclasses.replace(scene.job, status=SpotTrainingJobStatus.model_validate(older))
    end(scene, after=HOUR - 10).step()
    assert bill(scene).spent == "1.00"
    assert bill(scene).ended == Bill(
        spot_hours="1.00",
        spent="1.00",
        on_demand_equivalent="1.00",
        on_demand_hours="0.00",
        on_demand_spent="0.00",
    )
