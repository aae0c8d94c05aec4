"""Named ranks on on-demand machines beside a gang on spot ones: placed together, paid for apart."""

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod
from spot_training.control.cache import Cache
from spot_training.control.observations import charges
from spot_training.control.policies.budget import LEAD_SECONDS, MARGIN_SECONDS
from spot_training.control.policies.demand import Apart
from spot_training.control.policies.fallback import STEADY_SECONDS
from spot_training.control.policies.placement import place
from spot_training.control.supply import Supply
from spot_training.control.world import Claim
from tests.unit.control.build import GPU, NOW, Scene, pool, reclaim, spec
from tests.unit.control.objects import raw_job, raw_pod, raw_pool
from tests.unit.control.test_on_demand import spot_is_back
from tests.unit.control.test_placement import decide, nodes, waiting

GRACE = 55


# Placement: both parts or none


def on_demand(name: str = "b", **fields: Any) -> Any:
    return pool(name, capacityType="OnDemand", **fields)


def gang(name: str = "gang", replicas: int = 3, **fields: Any) -> Any:
    """A gang whose rank 0 goes apart; nobody may be on on-demand machines as a whole."""
    apart = Apart(1, "rank 0", fields.pop("not_apart", {}))
    refused = {"b": ("OnDemandNotAllowed", "no")} | fields.pop("refused", {})
    return waiting(name, replicas, apart=apart, refused=refused, **fields)


def test_the_rest_goes_to_a_spot_pool_and_the_part_to_an_on_demand_one() -> None:
    supply = Supply.of([*nodes(2), *nodes(1, "b")], [pool("a"), on_demand()])
    made = decide(gang(), supply=supply)["gang"]
    assert (made.pool, made.beside) == ("a", "b")
    assert made.shares(3) == {"a": 2, "b": 1}
    assert made.chosen.startswith("pool a, and b for rank 0; score")


def test_without_room_for_the_part_nothing_is_given() -> None:
    supply = Supply.of([*nodes(2), *nodes(1, "b")], [pool("a"), on_demand()], {("b0", GPU): 4})
    made = decide(gang(age=9), waiting("other", 2), supply=supply)
    assert (made["gang"].pool, made["gang"].reason) == (None, "NoCapacity")
    assert "b: for rank 0: 1 pods of 4 nvidia.com/gpu do not fit" in made["gang"].message
    assert made["other"].pool == "a", "what the gang cannot have is left to others"


def test_without_room_for_the_rest_nothing_is_given() -> None:
    supply = Supply.of([*nodes(1), *nodes(2, "b")], [pool("a"), on_demand()])
    made = decide(gang(age=9), waiting("other", pools=["b"]), supply=supply)
    assert made["gang"].pool is None
    assert "a: 2 pods of 4 nvidia.com/gpu do not fit: 4 free on 1 nodes" in made["gang"].message
    assert made["other"].pool == "b"


def test_what_both_parts_were_given_is_given_to_nobody_else() -> None:
    supply = Supply.of([*nodes(2), *nodes(1, "b")], [pool("a"), on_demand()])
    made = decide(gang(age=9), waiting("spot"), waiting("dear", pools=["b"]), supply=supply)
    assert [made[name].pool for name in ("gang", "spot", "dear")] == ["a", None, None]


def test_a_gang_that_lacks_room_for_its_part_holds_it() -> None:
    supply = Supply.of([*nodes(2), *nodes(2, "b")], [pool("a"), on_demand()])
    supply.use("b0", {GPU: 3}, training=True)
    supply.use("b1", {GPU: 1}, training=True)
    made = decide(gang(age=9), waiting("small", gpus=3, pools=["b"]), supply=supply)
    assert made["gang"].pool is None
    assert made["small"].reason == "HeldForAnother", "b1 lacks one GPU for the part"
    tiny = decide(gang(age=9), waiting("tiny", gpus=1, pools=["b"]), supply=supply)["tiny"]
    assert tiny.laid == ("b0",)
    supply.use("b1", {GPU: 1}, -1, training=True)
    supply.use("a0", {GPU: 4}, training=True)
    made = decide(gang(age=9), waiting("young", gpus=4, pools=["a"]), supply=supply)
    assert (made["gang"].pool, made["young"].reason) == (None, "HeldForAnother")


def test_the_second_pool_of_either_kind_is_tried_too() -> None:
    supply = Supply.of(
        [*nodes(1), *nodes(2, "c"), *nodes(1, "d")], [pool("a"), pool("c"), on_demand(), on_demand("d")]
    )
    made = decide(gang(pools=["a", "b", "c", "d"]), supply=supply)["gang"]
    assert (made.pool, made.beside) == ("c", "d")
    last = gang(pools=["a", "b", "c", "d"], last=frozenset({"d"}))
    assert decide(last, supply=supply)["gang"].beside == "d", "tried last, not never"


def test_refused_and_missing_on_demand_pools_are_said() -> None:
    supply = Supply.of([*nodes(2), *nodes(1, "b")], [pool("a"), on_demand()])
    made = decide(gang(not_apart={"b": ("NoPrice", "nobody knows")}), supply=supply)["gang"]
    assert (made.reason, made.message) == ("NoPrice", "b: for rank 0: nobody knows")
    made = decide(gang(pools=["a"]), supply=supply)["gang"]
    assert made.reason == "PoolNotFound"
    assert "there is no on-demand pool for rank 0; name a SpotPool" in made.message


def test_an_autoscaler_may_have_to_make_the_node_of_the_part() -> None:
    supply = Supply.of(nodes(2), [pool("a"), on_demand(provisioning="Autoscaled")])
    made = decide(gang(), gang("next", replicas=2, age=-9), supply=supply)
    assert (made["gang"].pool, made["gang"].beside, made["gang"].provisioned) == ("a", "b", ("b",))
    assert made["next"].pool is None, "the spot nodes are given away all the same"
    busy = decide(gang(), supply=supply, provisioning={"b": 4})["gang"]
    assert busy.pool is None
    assert "b: for rank 0: 4 gangs wait for nodes of its autoscaler already" in busy.message


def test_a_gang_that_queues_needs_no_room_and_gets_both_pools() -> None:
    supply = Supply.of([], [pool("a"), on_demand()])
    made = decide(gang(queued=True), supply=supply)["gang"]
    assert (made.pool, made.beside, made.provisioned) == ("a", "b", ())


def test_where_the_whole_may_stand_in_it_does_when_no_spot_pool_has_room() -> None:
    supply = Supply.of([*nodes(1), *nodes(3, "b")], [pool("a"), on_demand()])
    one = waiting("gang", 3, apart=Apart(1, "rank 0"))
    made = place([one], supply, (), {}, NOW)[one.key]
    assert (made.pool, made.beside) == ("b", "")


# The planner


def scene(replicas: int = 2, **fields: Any) -> Scene:
    wanted = {"ranks": [0], "maxCost": "2.00", **fields.pop("onDemand", {})}
    made = Scene(spec(replicas, onDemand=wanted, **fields))
    made.pools = {
        "a": pool("a", pricePerNodeHour="1.00", onDemandPricePerNodeHour="4.00"),
        "b": pool("b", pricePerNodeHour="4.00", capacityType="OnDemand", noticeSeconds=60),
    }
    return made


def running(made: Scene) -> Scene:
    made.run()
    for index in range(made.job.spec.replicas):
        limit = made.current.terms_of(index).budget_seconds
        made.change(
            index,
            accepted_at=made.now,
            started_at=made.now,
            running=True,
            phase="Running",
            budget_seconds=limit - GRACE - MARGIN_SECONDS if limit is not None else None,
        )
    made.run()
    assert made.status.phase == "Running"
    return made


def until(made: Scene, attempt: int) -> Scene:
    while made.current.attempt < attempt:
        assert made.now < NOW + 100_000, made.status
        made.run(10)
    return made


def test_it_is_reserved_and_announced_before_there_is_a_pod() -> None:
    made = scene()
    creates = [each for each in made.step() if isinstance(each, CreatePod)]
    assert made.current.pool == "a"
    assert made.current.on_demand is not None
    assert (made.current.on_demand.ranks, made.current.on_demand.pool) == ([0], "b")
    # 2.00 pays for half an hour of the one pod.
    assert made.current.on_demand.terms.budget_seconds == 1800
    assert [each.limit for each in creates] == [1800 - GRACE - MARGIN_SECONDS, None]
    assert made.why("OnDemand") == ("True", "Ranks")
    said = made.condition("OnDemand").message
    assert "rank 0 on on-demand pool b, at 4.00 each for an hour for 1800 s at the most" in said
    assert "OnDemandRanks" in [story.reason for story in made.plan.stories]


def test_each_pod_is_made_for_its_own_pool() -> None:
    made = scene()
    creates = [each for each in made.step() if isinstance(each, CreatePod)]
    where = {}
    for each in creates:
        in_pool = made.pools[made.current.pool_of(each.index)]
        body = manifests.pod(made.job, 1, each.index, in_pool, made.current, each.limit, each.avoid)
        where[each.index] = body["spec"]["nodeSelector"]["pool"], body["spec"].get("activeDeadlineSeconds")
    assert where == {0: ("b", 1730), 1: ("a", None)}


def test_machines_that_have_become_dearer_since_are_kept_off_for_the_named_rank_only() -> None:
    made = scene()
    made.step()
    made.on_node("b1", price=Decimal("4.01"))
    made.on_node("a1", price=Decimal("3.00"))
    creates = {each.index: each.avoid for each in made.step(1) if isinstance(each, CreatePod)}
    assert creates == {0: ("b1",), 1: ()}


def test_what_it_costs_is_split_by_the_machine_of_each_pod() -> None:
    made = running(scene(3))
    before = made.status
    made.step(900)
    cost = made.status.cost
    assert cost is not None
    assert (cost.spot_hours, cost.on_demand_hours) == ("0.50", "0.25")
    assert (cost.spent, cost.on_demand_spent) == ("1.50", "1.00")
    assert cost.on_demand_equivalent == "3.00"
    entries = [(each.pool, each.capacity_type, each.spent, len(each.nodes)) for each in cost.attempts]
    assert sorted(entries) == [("a", "Spot", "0.50", 2), ("b", "OnDemand", "1.00", 1)]
    found = {each.pool: each for each in charges(before, made.status)}
    assert (found["a"].capacity_type, found["a"].hours, found["a"].spent) == ("Spot", 0.5, 0.5)
    assert (found["b"].capacity_type, found["b"].hours, found["b"].spent) == ("OnDemand", 0.25, 1.0)
    assert found["a"].on_demand_equivalent == 2.0
    assert found["b"].on_demand_equivalent == 1.0


def test_when_its_money_is_used_up_the_gang_stops_in_order_and_goes_on_on_spot_machines() -> None:
    made = running(scene())
    at = 1800 - GRACE - MARGIN_SECONDS - LEAD_SECONDS
    made.step(at - 1)
    assert made.current.stop is None
    made.run(1)
    assert (made.stop.cause, made.stop.cls) == ("BudgetExhausted", "Released")
    for index in (0, 1):
        made.exit(143, index, ended_at=made.now + 2)
    made.run(2)
    until(made, 2)
    assert made.counts == (0, 0)
    assert made.current.pool == "a"
    assert made.current.on_demand is None, "both of them on spot machines"
    assert made.why("OnDemand") == ("False", "BudgetExhausted")
    assert (
        "rank 0 on spot machines with the others; b: on-demand, and 0." in made.condition("OnDemand").message
    )
    assert made.why("BudgetExhausted")[0] == "True"
    assert made.status.cost is not None
    assert Decimal("1.90") < Decimal(made.status.cost.on_demand_spent) < 2


def test_more_money_counts_from_the_next_attempt_on() -> None:
    made = running(scene(onDemand={"maxCost": "0.10"}))
    assert made.current.on_demand is None
    assert made.why("BudgetExhausted")[0] == "True"
    assert "RanksOnSpot" not in [story.reason for story in made.plan.stories], "told once for each attempt"
    made.edit(onDemand={"ranks": [0], "maxCost": "9.00"})
    made.run(10)
    assert made.current.stop is None
    made.exit(1, 0).exit(1, 1)
    made.leases = dict.fromkeys(made.nodes, made.now + 50)
    until(made, 2)
    assert made.current.on_demand is not None
    assert made.why("BudgetExhausted") == ("False", "BudgetLeft")


def test_who_waits_for_spot_machines_for_all_of_its_ranks_says_so_once() -> None:
    made = scene(onDemand={"maxCost": "0.10"})
    for name in ("a1", "a2"):
        made.on_node(name, schedulable=False)
    made.step()
    assert made.status.current is None
    assert made.why("BudgetExhausted") == ("True", "BudgetExhausted")
    assert "rank 0 on spot machines with the others; b: on-demand, and 0.10 is left" in (
        made.condition("BudgetExhausted").message
    )
    assert [story.reason for story in made.plan.stories].count("BudgetExhausted") == 1
    made.step(60)
    assert made.plan.stories == ()


def test_kubelet_that_ended_the_named_pod_while_nobody_was_there_is_no_failure() -> None:
    made = running(scene())
    over = made.now + 1800 - GRACE - MARGIN_SECONDS
    made.exit(143, 0, ended_at=over + 5, status_reason="DeadlineExceeded")
    made.change(0, exit=dataclasses.replace(made.pod(0).exit, at=over + 5))  # type: ignore[type-var]
    made.exit(1, 1, ended_at=over + 6)
    made.change(1, exit=dataclasses.replace(made.pod(1).exit, at=over + 6))  # type: ignore[type-var]
    made.step(5000)
    assert made.counts == (0, 0)
    assert made.current.end is None or made.current.end.reason == "BudgetExhausted"
    assert made.why("BudgetExhausted")[0] == "True"


def test_without_room_on_the_on_demand_pool_the_gang_waits_and_says_for_what() -> None:
    made = scene()
    for name in ("b1", "b2"):
        made.on_node(name, schedulable=False)
    made.step()
    assert made.status.current is None
    assert made.why() == ("False", "NoCapacity")
    assert "b: for rank 0: none of its 2 nodes is ready" in made.condition().message


def test_with_policy_never_nothing_but_the_named_ranks_is_ever_on_demand() -> None:
    made = scene()
    for name in ("a1", "a2"):
        made.on_node(name, schedulable=False)
    for _ in range(5):
        made.step(1000)
    assert made.status.current is None
    assert "onDemand.policy is Never (it is for onDemand.ranks only)" in made.condition().message


def test_the_rest_falls_back_where_it_may_and_goes_back_without_the_named_rank() -> None:
    made = scene(onDemand={"policy": "WhenNoSpot", "afterSeconds": 60, "maxCost": "99.00"})
    for name in ("a1", "a2"):
        made.on_node(name, schedulable=False)
    made.step()
    assert made.status.current is None
    made.run(60)
    assert (made.current.pool, made.current.on_demand) == ("b", None)
    assert made.why("OnDemand") == ("True", "NoSpot")
    running(made)
    made.used = {("b1", GPU): 4, ("b2", GPU): 4}
    spot_is_back(made)
    # One machine is enough: rank 0 has its own.
    made.on_node("a2", schedulable=False)
    made.step(60)
    made.step(STEADY_SECONDS)
    assert made.stop.cause == "BackToSpot"


def test_a_notice_on_a_spot_node_stops_the_named_rank_too() -> None:
    made = running(scene())
    name = made.pod(1).node
    made.mark(name, reclaim())
    made.run(1)
    assert made.pod(0).deleting
    assert made.pod(1).deleting
    assert made.status.timeline[-1].pool == "a"


def test_a_named_ranks_node_that_is_taken_speaks_against_its_own_pool() -> None:
    made = running(scene())
    made.pools["b"] = pool("b", pricePerNodeHour="4.00", capacityType="OnDemand", noticeSeconds=600)
    made.mark(made.pod(0).node, dataclasses.replace(reclaim(None), noticed_at=made.now))
    made.run(1)
    assert made.left(made.stop.deadline) == 599, "as long as its pool's notice"
    assert made.status.timeline[-1].pool == "b"
    for index in (0, 1):
        made.exit(143, index, ended_at=made.now)
    made.run(1)
    assert [each.pool for each in made.status.demoted_pools] == ["b"]


def test_an_on_demand_pool_that_is_late_is_demoted_and_not_the_spot_pool() -> None:
    made = scene(provisionTimeoutSeconds=300)
    made.run()
    made.change(1, started_at=made.now, running=True, phase="Running", accepted_at=made.now)
    made.change(0, node="")
    made.run(300)
    assert made.stop.cause == "ProvisionTimeout"
    made.exit(143, 1, ended_at=made.now)
    made.remove(0)
    made.run(1)
    assert [each.pool for each in made.status.demoted_pools] == ["b"]


def test_no_agent_is_missed_on_the_on_demand_node() -> None:
    made = scene()
    made.agents = {"a1", "a2"}
    running(made)
    assert not [each for each in made.status.conditions if each.type == "AgentMissing"]
    made.agents = set()
    made.step(1)
    assert made.why("AgentMissing")[0] == "True"
    assert made.pod(0).node not in made.condition("AgentMissing").message


def test_ranks_on_different_nodes_cannot_share_a_claim_for_one() -> None:
    made = scene()
    made.claim = Claim("claim", "claim-uid", modes=("ReadWriteOnce",))
    made.step()
    assert made.status.current is None
    assert made.why("ClaimReady") == ("False", "ClaimNotShareable")
    assert "rank 0 and the others would be on different nodes" in made.condition("ClaimReady").message


def test_the_ranks_are_those_that_the_attempt_was_opened_with() -> None:
    made = running(scene(3))
    made.edit(onDemand={"ranks": [1], "maxCost": "2.00"})
    made.run(10)
    assert made.current.stop is None
    assert made.current.on_demand is not None
    assert made.current.on_demand.ranks == [0]


def test_a_program_that_fails_early_beside_a_new_pool_speaks_against_that_one() -> None:
    made = scene()
    status = made.status.model_copy(update={"proven_pools": ["a"]})
    made.job = dataclasses.replace(made.job, status=status)
    made.run()
    made.change(0, trouble="ErrImagePull: no such image")
    made.run(901)
    made.remove(0, ended=True, ended_at=made.now)
    made.remove(1, ended=True)
    made.run(1)
    assert [(each.pool, each.avoid) for each in made.status.demoted_pools] == [("b", True)]
    made.run(1)
    assert made.status.current is not None
    assert made.current.end is not None
    assert made.why() == ("False", "PoolAvoided")


# What it reserves, and who uses the pools


@pytest.fixture
def cache() -> Cache:
    made = Cache()
    made.pools.put(raw_pool("a"))
    made.pools.put(raw_pool("b", capacityType="OnDemand"))
    current = {
        "attempt": 1,
        "pool": "a",
        "openedAt": "2026-04-08T05:00:00Z",
        "replicas": 3,
        "provisioned": ["b"],
        "onDemand": {"ranks": [0], "pool": "b", "terms": {"capacityType": "OnDemand"}},
    }
    raw = raw_job(current=current)
    raw["spec"]["replicas"] = 3
    made.jobs.put(raw)
    return made


def test_each_part_reserves_in_its_own_pool_until_it_is_bound(cache: Cache) -> None:
    assert {each.pool: each.pods for each in cache.reservations()} == {"a": 2, "b": 1}
    assert cache.provisioning() == {"b": 1}, "the nodes of a were there"
    raw = raw_pod("job-1-0", "p-0")
    raw["metadata"]["labels"] |= {"spot.training/attempt": "1", "spot.training/index": "0"}
    raw["metadata"]["ownerReferences"][0] |= {"name": "job", "uid": "j-1"}
    raw["spec"]["nodeName"] = "b1"
    cache.put_pod(raw)
    assert {each.pool: each.pods for each in cache.reservations()} == {"a": 2}


def test_both_pools_have_the_job_as_their_user(cache: Cache) -> None:
    assert [job.name for job in cache.users("a")] == [job.name for job in cache.users("b")] == ["job"]
    cache.jobs.drop(("ns", "job"))
    assert cache.users("a") == cache.users("b") == []
