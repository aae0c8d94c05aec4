"""On-demand machines standing in: after a while, within a budget, announced, and left again when spot pays."""

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod
from spot_training.control.policies.budget import (
    LEAD_SECONDS,
    MARGIN_SECONDS,
    USEFUL_SECONDS,
    Meter,
    Offer,
    must_stop_at,
    pod_deadline,
)
from spot_training.control.policies.fallback import STEADY_SECONDS, Move, expected_stay, lost_seconds, saving
from spot_training.control.world import Ask, Exit, Report
from tests.unit.control.build import NOW, Scene, job, pool, reclaim, spec

GRACE = 55


# What can be paid for


def offer(left: str, pods: int = 2, rate: str = "4.00", grace: int = GRACE) -> Offer:
    return Offer(pods, Decimal(rate), Decimal(left), grace)


def test_what_is_left_is_shared_out_as_seconds_for_each_pod() -> None:
    assert offer("8.00").seconds == 3600
    assert offer("8.00", pods=1, rate="0.001").seconds == 28_800_000
    assert offer("-1.00").seconds == 0
    assert offer("1.00", rate="0").seconds is None


def test_an_attempt_that_could_only_start_is_not_worth_its_money() -> None:
    least = GRACE + MARGIN_SECONDS + USEFUL_SECONDS
    per_second = Decimal(8) / 3600
    assert offer(str(per_second * least)).worth_it
    assert not offer(str(per_second * (least - 1))).worth_it


def test_a_pod_that_is_made_later_may_run_for_less() -> None:
    assert pod_deadline(1000, NOW, GRACE, NOW) == 1000 - GRACE - MARGIN_SECONDS
    assert pod_deadline(1000, NOW, GRACE, NOW + 10.2) == 1000 - 11 - GRACE - MARGIN_SECONDS
    assert pod_deadline(1000, NOW, GRACE, NOW + 2000) < 1


def test_the_gang_is_stopped_while_its_grace_can_still_be_paid_for() -> None:
    one = Meter(Decimal("3.60"), start=NOW)
    at = must_stop_at([one, one], Decimal("2.00"), GRACE, NOW + 100)
    # 2.00 pays for 1,000 s of two pods at a tenth of a cent each second.
    assert at == pytest.approx(NOW + 1000 - GRACE - MARGIN_SECONDS, abs=0.01)
    sooner = dataclasses.replace(one, deadline=NOW + 300)
    assert must_stop_at([sooner, one], Decimal("2.00"), GRACE, NOW) == NOW + 300 - LEAD_SECONDS
    ended = dataclasses.replace(one, end=NOW + 10)
    assert must_stop_at([ended], Decimal("2.00"), GRACE, NOW) is None


# Whether going back pays


def move(**fields: Any) -> Move:
    about: dict[str, Any] = {"stop_seconds": 60, "start_seconds": 120, "lost_seconds": 0}
    return Move(on_demand=Decimal(4), spot=Decimal(1), **(about | fields))


def test_moving_pays_where_the_cheaper_hours_outweigh_the_restart_and_the_lost_work() -> None:
    assert saving(move(), 3600) == Decimal(4) - (Decimal(240) + Decimal(3720)) / 3600
    assert saving(move(), 60) < 0, "too short a stay"
    assert saving(move(lost_seconds=3600), 3600) < 0, "more work lost than money saved"
    assert saving(dataclasses.replace(move(), spot=Decimal(5)), 1e6) < 0, "spot is dearer"


def test_a_job_that_was_reclaimed_often_may_not_expect_spot_to_stay() -> None:
    assert expected_stay(0, 0) == 3600
    assert expected_stay(36_000, 1) == 19_800
    assert expected_stay(720, 5) == 720


def test_what_a_stop_throws_away() -> None:
    assert lost_seconds(True, None, 5000) == 0
    assert lost_seconds(False, 600, 5000) == 600
    assert lost_seconds(False, 600, 50) == 50
    assert lost_seconds(False, None, 5000) == 5000


# The planner


def fallback(replicas: int = 1, **fields: Any) -> Scene:
    """A spot pool without room, and an on-demand pool with some; at 4.00 a node hour."""
    wanted = {"policy": "WhenNoSpot", "maxCost": "2.00", **fields.pop("onDemand", {})}
    scene = Scene(spec(replicas, onDemand=wanted, **fields))
    scene.pools = {
        "a": pool("a", pricePerNodeHour="1.00", onDemandPricePerNodeHour="4.00"),
        "b": pool("b", pricePerNodeHour="4.00", capacityType="OnDemand"),
    }
    for name in ("a1", "a2"):
        scene.on_node(name, schedulable=False)
    return scene


def spot_is_back(scene: Scene) -> None:
    for name in ("a1", "a2"):
        scene.on_node(name, schedulable=True)


def running(scene: Scene) -> Scene:
    """The attempt's pods have just been accepted, and all run."""
    scene.run()
    for index in range(scene.job.spec.replicas):
        limit = scene.current.terms.budget_seconds if scene.current.terms else None
        scene.change(
            index,
            accepted_at=scene.now,
            started_at=scene.now,
            running=True,
            created=scene.now,
            phase="Running",
            budget_seconds=limit - GRACE - MARGIN_SECONDS if limit is not None else None,
        )
    scene.run()
    assert scene.status.phase == "Running"
    return scene


def on_demand(**fields: Any) -> Scene:
    """A job that runs on on-demand machines."""
    scene = fallback(onDemand={"afterSeconds": 0, **fields.pop("onDemand", {})}, **fields)
    scene.run()
    assert scene.current.pool == "b"
    return running(scene)


def test_on_demand_machines_are_waited_with_and_the_condition_says_for_how_long() -> None:
    scene = fallback()
    scene.step()
    assert scene.why() == ("False", "NoCapacity")
    assert "b: on-demand, from 2030-03-17T17:56:40.000Z on" in scene.condition().message
    assert scene.plan.wake_at == NOW + 600
    scene.step(599)
    assert scene.status.current is None
    scene.step(1)
    assert scene.current.pool == "b"


def test_the_wait_begins_anew_only_after_spot_machines_have_run() -> None:
    scene = fallback(provisionTimeoutSeconds=300)
    spot_is_back(scene)
    scene.run()
    assert scene.current.pool == "a"
    scene.run(300)
    assert scene.current.end is None or scene.current.end.cls == "NotStarted"
    scene.remove(tombstone=True).run()
    assert scene.status.fallback is not None
    assert scene.left(scene.status.fallback.no_spot_since) <= -300


def test_running_on_spot_forgets_the_wait() -> None:
    scene = fallback()
    scene.step()
    assert scene.status.fallback is not None
    spot_is_back(scene)
    running(scene)
    assert scene.current.pool == "a"
    assert scene.status.fallback is None


def test_after_a_reclamation_the_wait_is_as_long_as_at_first() -> None:
    scene = fallback()
    spot_is_back(scene)
    running(scene)
    scene.now += 5000
    for name in ("a1", "a2"):
        scene.mark(name, dataclasses.replace(reclaim(), deadline=scene.now + 60))
    scene.run()
    scene.exit(143, ended_at=scene.now + 5).run(5)
    lost = scene.now
    assert scene.counts == (1, 0)
    while scene.current.attempt == 1:
        assert scene.now < lost + 700, scene.status
        scene.run(30)
    assert scene.current.pool == "b"
    assert 600 <= scene.now - lost < 660


def test_a_job_that_is_suspended_does_not_wait() -> None:
    scene = fallback()
    scene.step()
    scene.edit(suspend=True)
    scene.step(5000)
    scene.edit(suspend=False)
    scene.step()
    assert scene.status.current is None, "it waits anew for ten minutes"
    scene.step(600)
    assert scene.current.pool == "b"


def test_spot_comes_first_wherever_the_on_demand_pool_stands_in_the_list() -> None:
    scene = fallback(pools=["b", "a"], onDemand={"afterSeconds": 0})
    spot_is_back(scene)
    scene.step()
    assert scene.current.pool == "a"


@pytest.mark.parametrize("pools", [["a", "b"], []])
def test_a_spot_pool_that_reclaimed_a_node_and_has_another_comes_before_on_demand_ones(
    pools: list[str],
) -> None:
    scene = fallback(pools=pools, onDemand={"afterSeconds": 0})
    spot_is_back(scene)
    running(scene)
    scene.mark("a1", reclaim()).run().exit(143).run()
    assert [(each.pool, each.reason) for each in scene.status.demoted_pools] == [("a", "Reclaimed")]
    assert (scene.current.attempt, scene.current.pool) == (2, "a"), "a2 is free"
    assert scene.status.fallback is None, "a spot pool has room"


def test_a_spot_pool_on_which_a_gang_did_not_become_whole_comes_behind_on_demand_ones() -> None:
    scene = fallback(onDemand={"afterSeconds": 0}, provisionTimeoutSeconds=300)
    spot_is_back(scene)
    scene.run()
    assert scene.current.pool == "a"
    scene.run(300)
    scene.remove(tombstone=True).run()
    assert [(each.pool, each.reason) for each in scene.status.demoted_pools] == [("a", "ProvisionTimeout")]
    while scene.current.attempt == 1:
        assert scene.now < NOW + 900, scene.status
        scene.run(30)
    assert scene.current.pool == "b", "what it counts as room is none"


def test_without_a_list_of_pools_on_demand_ones_stand_in_too() -> None:
    scene = fallback(pools=[], onDemand={"afterSeconds": 0})
    scene.step()
    assert scene.current.pool == "b"
    never = fallback(pools=[], onDemand={"policy": "Never"})
    never.step()
    assert "on-demand" not in never.condition().message


def test_it_is_announced_before_there_is_a_pod() -> None:
    scene = fallback(onDemand={"afterSeconds": 0})
    actions = scene.step()
    assert [each for each in actions if isinstance(each, CreatePod)], actions
    assert scene.why("OnDemand") == ("True", "NoSpot")
    assert "at 4.00 for an hour for 1800 s at the most" in scene.condition("OnDemand").message
    assert "2.00 left of onDemand.maxCost 2.00" in scene.condition("OnDemand").message
    assert "OnDemandFallback" in [story.reason for story in scene.plan.stories]


def test_a_pod_has_the_deadline_that_its_budget_pays_for() -> None:
    scene = fallback(replicas=2, onDemand={"afterSeconds": 0})
    creates = [each for each in scene.step() if isinstance(each, CreatePod)]
    assert [each.limit for each in creates] == [900 - GRACE - MARGIN_SECONDS] * 2
    made = manifests.pod(scene.job, 1, 0, scene.pools["b"], scene.current, creates[0].limit)
    assert made["spec"]["activeDeadlineSeconds"] == 830
    assert made["metadata"]["annotations"]["spot.training/budget-seconds"] == "830"
    later = [each for each in scene.step(100) if isinstance(each, CreatePod)]
    assert [each.limit for each in later] == [730] * 2


def test_a_shorter_deadline_of_the_users_stays_and_is_the_programs() -> None:
    about = spec().to_json()
    about["template"]["spec"]["activeDeadlineSeconds"] = 100
    about["template"]["metadata"] = {"annotations": {"spot.training/budget-seconds": "5"}}
    made = manifests.pod(job(SpotTrainingJobSpec.model_validate(about)), 1, 0, pool("b"), None, 830)
    assert made["spec"]["activeDeadlineSeconds"] == 100
    assert "spot.training/budget-seconds" not in made["metadata"]["annotations"]


def test_no_pod_is_made_once_its_time_is_over() -> None:
    scene = fallback(onDemand={"afterSeconds": 0}, provisionTimeoutSeconds=100_000)
    scene.step()
    actions = scene.step(1800)
    assert not [each for each in actions if isinstance(each, CreatePod)]
    assert (scene.stop.cause, scene.stop.cls) == ("BudgetExhausted", "Released")


def test_the_dearest_machine_of_the_pool_is_what_the_budget_must_pay_for() -> None:
    scene = fallback(onDemand={"afterSeconds": 0})
    scene.on_node("b1", price=Decimal("8.00"))
    scene.step()
    assert scene.current.terms is not None
    assert (scene.current.terms.price, scene.current.terms.budget_seconds) == ("8.00", 900)


def test_machines_that_have_become_dearer_since_are_kept_off() -> None:
    scene = fallback(onDemand={"afterSeconds": 0})
    scene.step()
    scene.on_node("b1", price=Decimal("4.01"))
    (create,) = [each for each in scene.step(1) if isinstance(each, CreatePod)]
    assert create.avoid == ("b1",)


def test_a_pool_whose_price_nobody_knows_is_not_used() -> None:
    scene = fallback(onDemand={"afterSeconds": 0})
    scene.pools["b"] = pool("b", capacityType="OnDemand")
    scene.step()
    assert scene.status.current is None
    assert "its price is not known, so that onDemand.maxCost could not be held" in scene.condition().message


def test_too_little_left_is_said_once_and_mended_by_more() -> None:
    scene = fallback(onDemand={"afterSeconds": 0, "maxCost": "0.10"})
    scene.step()
    assert scene.why("BudgetExhausted") == ("True", "BudgetExhausted")
    assert "0.10 is left of onDemand.maxCost 0.10, which pays for 90 s of 1 pods" in scene.condition().message
    assert [story.reason for story in scene.plan.stories].count("BudgetExhausted") == 1
    scene.step(60)
    assert not scene.plan.stories
    scene.edit(onDemand={"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "2.00"})
    scene.step()
    assert scene.current.pool == "b"
    assert scene.why("BudgetExhausted") == ("False", "BudgetLeft")


def test_the_gang_is_stopped_in_order_before_kubelet_would() -> None:
    scene = on_demand()
    deadline = scene.now + 1800 - GRACE - MARGIN_SECONDS - LEAD_SECONDS
    assert scene.plan.wake_at is not None
    scene.step(deadline - scene.now - 1)
    assert scene.current.stop is None
    scene.run(1)
    assert (scene.stop.cause, scene.stop.cls) == ("BudgetExhausted", "Released")
    assert scene.pod().kill_at == scene.now + GRACE
    assert scene.why("BudgetExhausted")[0] == "True"
    scene.exit(143, ended_at=scene.now + 3).step(3)
    assert scene.counts == (0, 0), "neither a disruption nor a failure"
    assert scene.current.end is not None
    assert scene.current.end.cls == "Released"
    assert scene.why("OnDemand") == ("False", "BudgetExhausted")
    assert scene.why() == ("False", "NoCapacity")
    assert "onDemand.maxCost 2.00" in scene.condition().message
    assert scene.status.cost is not None
    assert Decimal("1.90") < Decimal(scene.status.cost.on_demand_spent) < 2


def test_kubelets_that_ended_the_pods_while_nobody_was_there_are_no_failure() -> None:
    scene = on_demand(replicas=2)
    over = scene.now + 900 - GRACE - MARGIN_SECONDS
    scene.exit(1, 0, exit=Exit(1, "Error", over + 2), ended_at=over + 2)
    scene.exit(143, 1, exit=Exit(143, "Error", over + 5), ended_at=over + 5, status_reason="DeadlineExceeded")
    scene.step(5000)
    assert scene.counts == (0, 0)
    assert scene.current.end is not None
    assert (scene.current.end.cls, scene.current.end.reason) == ("Released", "BudgetExhausted")
    assert scene.why("BudgetExhausted")[0] == "True"


def test_a_rank_that_failed_before_is_a_failure_though_kubelet_ended_the_others() -> None:
    scene = on_demand(replicas=2)
    over = scene.now + 900 - GRACE - MARGIN_SECONDS
    scene.exit(1, 0, exit=Exit(1, "Error", over - 300), ended_at=over - 300)
    scene.exit(143, 1, exit=Exit(143, "Error", over + 5), ended_at=over + 5, status_reason="DeadlineExceeded")
    scene.leases = dict.fromkeys(("b1", "b2"), scene.now + 5000)
    scene.step(4000)
    scene.step(1)
    assert scene.counts == (0, 1)


@pytest.mark.parametrize(("report", "phase"), [(None, "Recovering"), (Report("Completed"), "Succeeded")])
def test_a_program_that_saves_and_exits_with_0_at_the_deadline_is_not_done(
    report: Report | None, phase: str
) -> None:
    scene = on_demand(recovery={"maxDisruptions": 5})
    scene.job = dataclasses.replace(scene.job, status=scene.status.model_copy(update={"disruptions": 1}))
    over = scene.now + 1800 - GRACE - MARGIN_SECONDS
    scene.exit(
        0, exit=Exit(0, "Completed", over), ended_at=over, status_reason="DeadlineExceeded", report=report
    )
    scene.step(5000)
    assert scene.status.phase == phase


def test_spending_is_carried_on_from_attempt_to_attempt() -> None:
    scene = on_demand()
    scene.exit(1, exit=Exit(1, "Error", scene.now + 900), ended_at=scene.now + 900)
    scene.run(900)
    while scene.current.attempt == 1:
        scene.run(30)
    assert scene.current.terms is not None
    assert scene.status.cost is not None
    assert scene.status.cost.on_demand_spent == "1.00"
    assert scene.status.cost.held == "0.002223", "two seconds that kubelet's clock may hide"
    assert scene.current.terms.budget_seconds == int((Decimal("1.00") - Decimal("0.002223")) / 4 * 3600)


def test_money_is_held_for_a_machine_that_is_lost_and_may_run_on() -> None:
    scene = on_demand()
    name = scene.pod().node
    scene.leases[name] = scene.now + 100
    scene.on_node(name, ready=False, ready_since=scene.now + 140)
    scene.run(300)
    assert scene.status.cost is not None
    assert Decimal(scene.status.cost.on_demand_spent) * 900 == pytest.approx(Decimal(100), abs=1)
    assert Decimal(scene.status.cost.held or 0) + Decimal(scene.status.cost.on_demand_spent) == pytest.approx(
        Decimal(2), abs=Decimal("0.001")
    )
    assert scene.why()[1] == "NoCapacity"
    assert scene.why("BudgetExhausted")[0] == "True"


def test_an_unseen_end_is_believed_when_the_kubelet_was_heard_of_since() -> None:
    scene = on_demand()
    name = scene.pod().node
    scene.leases[name] = scene.now + 99
    scene.remove(tombstone=False)
    scene.step(100)
    assert scene.current.end is None, "the machine may have been cut off just before"
    assert "has not been heard of since" in scene.condition().message
    scene.step(1)
    assert scene.current.end is None
    assert Ask.LEASES in scene.asked
    scene.leases[name] = scene.now
    scene.step(1)
    assert scene.current.attempt == 2 or scene.current.end is not None
    assert scene.status.cost is not None
    assert Decimal(scene.status.cost.held or 0) < Decimal("0.10")


def test_a_longer_grace_in_the_template_does_not_lengthen_that_of_pods_that_are_paid_for() -> None:
    scene = on_demand()
    template = scene.job.spec.template.to_json()
    template["spec"]["terminationGracePeriodSeconds"] = 3600
    scene.edit(template=template)
    scene.step(60)
    assert scene.current.stop is None
    scene.run(1800 - 60 - GRACE - MARGIN_SECONDS - LEAD_SECONDS)
    assert scene.stop.cause == "BudgetExhausted"
    assert scene.pod().kill_at == scene.now + GRACE


def test_lowering_the_budget_stops_what_it_does_not_pay_for_any_more() -> None:
    scene = on_demand()
    scene.step(600)
    scene.edit(onDemand={"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "0.70"})
    scene.step()
    assert scene.stop.cause == "BudgetExhausted"


def test_a_reclamation_of_an_on_demand_machine_is_a_disruption_as_any() -> None:
    scene = on_demand()
    scene.mark(scene.pod().node, reclaim())
    scene.run(1)
    assert (scene.stop.cause, scene.stop.cls) == ("Reclaimed", "Disruption")


def test_a_notice_long_ahead_lengthens_no_grace_that_is_paid_for() -> None:
    scene = on_demand()
    scene.mark(scene.pod().node, dataclasses.replace(reclaim(), deadline=scene.now + 3600))
    scene.run(1)
    assert scene.pod().kill_at == scene.now + GRACE


# Back to spot


def test_back_to_spot_once_it_has_had_room_for_a_while() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"})
    spot_is_back(scene)
    scene.step(60)
    assert scene.status.fallback is not None
    assert scene.left(scene.status.fallback.spot_since) == 0
    scene.step(STEADY_SECONDS - 1)
    assert scene.current.stop is None
    scene.run(1)
    assert (scene.stop.cause, scene.stop.cls) == ("BackToSpot", "Released")
    assert "spot pool a has had room since" in scene.stop.message
    scene.exit(143, ended_at=scene.now).run()
    while scene.current.attempt == 1:
        scene.run(5)
    assert scene.current.pool == "a"
    running(scene)
    assert scene.counts == (0, 0)
    assert scene.status.fallback is None
    assert scene.why("OnDemand") == ("False", "Spot")


def test_room_that_comes_and_goes_is_not_trusted() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"})
    for _ in range(5):
        spot_is_back(scene)
        scene.step(STEADY_SECONDS / 2)
        scene.on_node("a1", schedulable=False)
        scene.on_node("a2", schedulable=False)
        scene.step(60)
        assert scene.status.fallback is not None
        assert scene.status.fallback.spot_since is None
    assert scene.current.stop is None


def test_a_program_that_would_lose_hours_stays() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"}, checkpoint={"writer": "Other"})
    scene.step(2 * 3600)
    spot_is_back(scene)
    for _ in range(20):
        scene.step(60)
    assert scene.current.stop is None
    assert scene.status.fallback is not None
    assert scene.status.fallback.spot_since is not None, "the room is seen, the move does not pay"


def test_a_program_that_saves_now_and_then_goes() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"}, checkpoint={"writer": "Other", "intervalSeconds": 300})
    scene.step(2 * 3600)
    spot_is_back(scene)
    scene.step(60)
    scene.step(STEADY_SECONDS)
    assert scene.stop.cause == "BackToSpot"


def test_a_spot_pool_of_which_nobody_knows_the_price_is_not_gone_back_to() -> None:
    scene = on_demand(onDemand={"maxCost": "99.00"})
    scene.pools["a"] = pool("a")
    spot_is_back(scene)
    scene.step(60)
    scene.step(STEADY_SECONDS)
    assert scene.current.stop is None


def test_on_demand_machines_that_are_not_allowed_any_more_are_given_back() -> None:
    scene = on_demand()
    scene.edit(onDemand={"policy": "Never", "maxCost": "2.00"})
    scene.step()
    assert (scene.stop.cause, scene.stop.cls) == ("OnDemandNotAllowed", "Released")
