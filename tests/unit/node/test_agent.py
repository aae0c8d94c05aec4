"""The whole agent against an API server over HTTP: the fault table, and what the world looks like after each fault."""

import logging

import pytest
from prometheus_client import generate_latest

from spot_training.api.times import parse_time
from spot_training.node import agent as agent_module
from spot_training.node.notice import Answer, Nothing, Unknown
from tests.unit.node.api import Api, broken
from tests.unit.node.waiting import until
from tests.unit.node.working import (
    CORDON,
    MARGIN,
    NODE,
    POOL,
    TAINT,
    Script,
    drained,
    due,
    marked,
    unmarked,
    working,
    workload,
)


async def test_from_notice_to_empty_node(api: Api) -> None:
    workload(api)
    api.add_pod("done", node=NODE, owner="DaemonSet", phase="Succeeded", job=True)
    source = Script()
    async with working(api, source) as agent:
        await until("polls", lambda: source.asked > 3, lambda: api.requests)
        assert api.writes == []
        source.answer = answer = due(60)
        await drained(api)
        await until("events", lambda: len(api.events) == 2, lambda: api.events)
        metrics = generate_latest(agent._metrics.registry).decode()
    at = answer.notices[0].says
    metadata, spec = api.nodes[NODE]["metadata"], api.nodes[NODE]["spec"]
    assert spec == {"taints": [POOL, TAINT, CORDON], "unschedulable": True}
    assert metadata["annotations"]["spot.training/notice-id"] == answer.notices[0].id
    assert parse_time(metadata["annotations"]["spot.training/reclaim-deadline"]) == at
    assert metadata["annotations"]["spot.training/cordoned-by"] == "spot.training/agent"
    assert api.conditions(NODE) == {"DrainInProgress": "False", "Drained": "True"}
    assert [event["reason"] for event in api.events] == ["SpotReclaim", "Drained"]
    assert set(api.pods) == {"logs", "elsewhere", "finished", "done"}
    # The training pod first, by DELETE with what the deadline leaves; the others by eviction.
    ((request, grace),) = api.told["train"]
    assert request == "delete" and 60 - MARGIN - 4 <= grace <= 60 - MARGIN + 1
    assert api.told["web"] == api.told["api"] == [("evict", 30)]
    assert "spot_agent_notice_to_cordon_seconds_count 1.0" in metrics
    assert 'spot_agent_notices_total{kind="reclaim",source="eci"} 1.0' in metrics
    assert 'spot_agent_evictions_total{result="deleted"} 1.0' in metrics
    assert 'spot_agent_evictions_total{result="evicted"} 2.0' in metrics


async def test_why_a_training_pod_went_is_written_into_it_before_it_goes(api: Api) -> None:
    api.add_pod("train", node=NODE, job=True)
    api.stops["train"] = 30
    async with working(api, Script(due(60))):
        await until("the deletion", lambda: "train" in api.told, lambda: api.requests)
    (condition,) = api.pods["train"]["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("DisruptionTarget", "SpotReclamation")


async def test_a_pod_that_may_not_be_explained_goes_all_the_same(api: Api) -> None:
    api.add_pod("train", node=NODE, job=True)
    api.fault = lambda request: broken(403) if request.path.endswith("/pods/train/status") else None
    async with working(api, Script(due(60))):
        await drained(api)


async def test_a_hundred_pods(api: Api) -> None:
    for index in range(100):
        api.add_pod(f"p{index}", node=NODE)
    async with working(api, Script(due(60))):
        await drained(api)
    assert {tuple(told) for told in api.told.values()} == {(("evict", 30),)}


async def test_a_budget_is_respected_until_time_is_short_and_then_passed_over(api: Api) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    source = Script(due(250))
    async with working(api, source):
        await until("refusals", lambda: len(api.told.get("guarded", [])) >= 2, lambda: api.told)
        assert {request for request, _ in api.told["guarded"]} == {"refused"}
        # The same budget with 15 s less margin left, and a pod that wants 30.
        source.answer = due(15)
        await drained(api)
    request, grace = api.told["guarded"][-1]
    assert request == "delete" and 1 <= grace <= 11


async def test_a_pod_that_is_going_too_slowly_is_hurried_and_one_that_is_not_is_left(api: Api) -> None:
    for name, grace in (("slow", 3600), ("quick", 20)):
        api.add_pod(name, node=NODE)
        api.stops[name] = 3600
        api._stop(name, grace)
    async with working(api, Script(due(60))):
        await until("the shorter grace", lambda: "slow" in api.told, lambda: api.requests)
    assert [request for request, _ in api.told["slow"]] == ["delete"]
    assert api.told["slow"][0][1] <= 56
    assert "quick" not in api.told
    # Somebody else's deletion is not given our reason.
    assert "conditions" not in api.pods["slow"]["status"]


async def test_cordon_only_touches_no_pod(api: Api) -> None:
    workload(api)
    async with working(api, Script(due(60)), drain=False):
        await marked(api)
    assert not api.told and not api.conditions(NODE)
    assert not [request for request in api.requests if "/pods" in request]


async def test_dry_run_writes_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    workload(api)
    caplog.set_level(logging.INFO)
    async with working(api, Script(due(60)), dry_run=True):
        await until(
            "what would be done",
            lambda: all(text in caplog.text for text in ("would delete", "would evict", "would patch")),
            lambda: caplog.text,
        )
    assert api.writes == [] and api.events == []


# Withdrawal.


async def test_a_source_that_falls_silent_withdraws_nothing(api: Api) -> None:
    source = Script(due(60))
    async with working(api, source):
        await marked(api)
        source.answer = Unknown("HTTP status 503")
        polls = source.asked
        await until("many polls", lambda: source.asked > polls + 20, lambda: source.asked)
        assert TAINT in api.nodes[NODE]["spec"]["taints"]


async def test_a_foreign_cordon_outlives_the_notice(api: Api) -> None:
    api.nodes[NODE]["spec"]["unschedulable"] = True
    source = Script(due(60))
    async with working(api, source):
        await marked(api)
        source.answer = Nothing()
        await until("the taint gone", lambda: api.nodes[NODE]["spec"]["taints"] == [POOL], lambda: api.nodes)
    assert api.nodes[NODE]["spec"]["unschedulable"] is True


# An API server in trouble.


async def test_marks_that_are_refused_do_not_keep_the_pods(api: Api) -> None:
    workload(api)
    api.fault = lambda request: (
        broken(403) if request.method == "PATCH" and "/nodes/" in request.path else None
    )
    async with working(api, Script(due(60))):
        await until("an empty node", lambda: not api.leaving(), lambda: (api.pods, api.requests[-9:]))


async def test_one_pod_that_cannot_be_removed_does_not_keep_the_others(api: Api) -> None:
    workload(api)
    api.fault = lambda request: broken(500) if "/pods/train" in request.path else None
    async with working(api, Script(due(60))):
        await until("all but one", lambda: api.leaving() == ["train"], lambda: api.told)
        api.fault = lambda _: None
        await drained(api)


async def test_events_that_cannot_be_posted_delay_nothing(api: Api) -> None:
    workload(api)
    api.fault = lambda request: broken(500) if request.path.endswith("/events") else None
    async with working(api, Script(due(60))):
        await drained(api)


async def test_a_watch_that_breaks_off_is_taken_up_again(api: Api) -> None:
    source = Script()
    async with working(api, source):
        for name in ("a", "b", "c"):
            api.add_pod(name, node=NODE)
            api.end_watches()
        source.answer = due(60)
        await drained(api)


# The socket, and the loops themselves.


async def test_a_dead_socket_replaces_the_pod_but_never_while_a_notice_stands(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "STALE_SECONDS", 0.05)
    api.add_pod("agent-x", node=NODE, owner="DaemonSet")
    source = Script(due(60))
    async with working(api, source, pod=("ns", "agent-x")):
        await marked(api)
        source.answer = Unknown("refused", unconnectable=True)
        polls = source.asked
        await until("many polls", lambda: source.asked > polls + 20, lambda: source.asked)
        assert "agent-x" in api.pods
        source.answer = Nothing()
        await unmarked(api)
        source.answer = Unknown("HTTP status 500")
        polls = source.asked
        await until("many polls", lambda: source.asked > polls + 20, lambda: source.asked)
        assert "agent-x" in api.pods
        source.answer = Unknown("refused", unconnectable=True)
        await until("a new pod", lambda: "agent-x" not in api.pods, lambda: api.requests)


async def test_an_adapter_that_fails_unforeseen_is_unknown_and_the_agent_goes_on(api: Api) -> None:
    class Faulty(Script):
        async def ask(self) -> Answer:
            self.asked += 1
            if self.asked < 5:
                raise RecursionError("nobody thought of this")
            return due(60)

    async with working(api, Faulty()) as agent:
        await until("not ready", lambda: not agent.pulse.ready, lambda: agent.pulse)
        await marked(api)
        assert agent.pulse.ready
