"""The whole agent and notices that only warn: taint and tell, drain as told, make way for a reclamation."""

import math
import time

from prometheus_client import generate_latest

from spot_training.node.notice import Nothing, Notice, Notices
from spot_training.node.policy import NEAR_SECONDS, Policy, Response
from tests.unit.node.api import Api
from tests.unit.node.waiting import until
from tests.unit.node.working import (
    CORDON,
    NODE,
    POOL,
    Script,
    drained,
    due,
    marked,
    unmarked,
    working,
    workload,
)

REBALANCE = Notice("aws-rebalance-1", "rebalance", "aws", None)
WARNED = {"key": "spot.training/reclaim", "value": "rebalance", "effect": "PreferNoSchedule"}


async def warned(api: Api, taint: dict[str, str] = WARNED) -> None:
    await until(
        "the warning", lambda: api.nodes[NODE]["spec"] == {"taints": [POOL, taint]}, lambda: api.nodes
    )


async def test_a_rebalance_taints_and_tells_and_touches_no_pod(api: Api) -> None:
    workload(api)
    source = Script(Notices((REBALANCE,)))
    async with working(api, source) as agent:
        await warned(api)
        await until("the event", lambda: len(api.events) == 1, lambda: api.events)
        polls = source.asked
        await until("many polls", lambda: source.asked > polls + 20, lambda: source.asked)
        metrics = generate_latest(agent._metrics.registry).decode()
        assert not api.told and not api.conditions(NODE)
        assert "spot.training/reclaim-deadline" not in api.nodes[NODE]["metadata"]["annotations"]
        source.answer = Nothing()
        await unmarked(api)
        await until("its end", lambda: len(api.events) == 2, lambda: api.events)
    assert [event["reason"] for event in api.events] == ["SpotWarning", "NoticeWithdrawn"]
    assert "announces a rebalance of this node" in api.events[0]["note"]
    assert 'spot_agent_notices_total{kind="rebalance",source="aws"} 1.0' in metrics
    assert "spot_agent_notice_to_cordon_seconds_count 0.0" in metrics


async def test_a_reclamation_takes_over_from_a_warning_and_gives_back_to_it(api: Api) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    source = Script(Notices((REBALANCE,)))
    async with working(api, source):
        await warned(api)
        source.answer = Notices((REBALANCE, *due(250).notices))
        await marked(api)
        await until("refusals", lambda: bool(api.told.get("guarded")), lambda: api.told)
        assert WARNED not in api.nodes[NODE]["spec"]["taints"]
        source.answer = Notices((REBALANCE,))
        await warned(api)
        await until(
            "no drain", lambda: "True" not in api.conditions(NODE).values(), lambda: api.conditions(NODE)
        )
    assert "guarded" in api.pods


async def test_a_restarted_agent_goes_on_warning_and_tells_it_once(api: Api) -> None:
    async with working(api, Script(Notices((REBALANCE,)))):
        await warned(api)
        await until("the event", lambda: bool(api.events), lambda: api.events)
    source = Script(Notices((REBALANCE,)))
    async with working(api, source):
        await until("polls", lambda: source.asked > 20, lambda: source.asked)
        await warned(api)
    assert [event["reason"] for event in api.events] == ["SpotWarning"]


async def test_a_partial_answer_is_acted_upon_and_the_agent_is_not_ready(api: Api) -> None:
    source = Script(Notices(due(60).notices, missing="HTTP status 500"))
    async with working(api, source) as agent:
        await marked(api)
        await until("not ready", lambda: not agent.pulse.ready, lambda: agent.pulse)
        assert agent.pulse.reason == "HTTP status 500"


async def test_a_rebalance_drains_where_it_is_told_to_without_hurry(api: Api) -> None:
    workload(api)
    api.pods["train"]["spec"]["terminationGracePeriodSeconds"] = 600
    async with working(api, Script(Notices((REBALANCE,))), policy=Policy(rebalance=Response.DRAIN)):
        await drained(api)
    assert api.told == {"train": [("delete", 600)], "web": [("evict", 30)], "api": [("evict", 30)]}
    assert api.nodes[NODE]["spec"]["unschedulable"] is True
    assert "spot.training/reclaim-deadline" not in api.nodes[NODE]["metadata"]["annotations"]


async def test_what_is_ignored_leaves_no_mark(api: Api) -> None:
    source = Script(Notices((REBALANCE,)))
    async with working(api, source, policy=Policy(rebalance=Response.IGNORE)):
        await until("polls", lambda: source.asked > 20, lambda: source.asked)
    assert api.writes == [] and api.events == []


async def test_a_maintenance_that_comes_near_is_drained_for(api: Api) -> None:
    workload(api)
    at = math.ceil(time.time()) + NEAR_SECONDS + 3600
    taint = WARNED | {"value": "maintenance"}
    source = Script(Notices((Notice("aws-event-1", "maintenance", "aws", at),)))
    async with working(api, source) as agent:
        await warned(api, taint)
        assert not api.told
        # The API server's clock counts, and any of its answers tells the time.
        api.skew = 3600
        agent.situation.tell()
        await drained(api)
    hard = {**taint, "effect": "NoSchedule"}
    assert api.nodes[NODE]["spec"] == {"taints": [POOL, hard, CORDON], "unschedulable": True}
