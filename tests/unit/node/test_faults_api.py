"""The fault table, second part: what the API server does, and what the node and its pods look like at the deadline."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from spot_training.node.marker import RECHECK_SECONDS
from spot_training.node.notice import Unknown
from tests.unit.node.api import Api, broken
from tests.unit.node.conftest import Scenario
from tests.unit.node.waiting import until
from tests.unit.node.working import (
    CORDON,
    MARGIN,
    NODE,
    POOL,
    TAINT,
    Ear,
    Script,
    drained,
    due,
    working,
    workload,
)

Stage = Callable[[Scenario], None]


def loop_time() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("code", [500, 503, 429, 0])
def test_api_down_for_20_seconds_at_the_notice(in_virtual_time: Stage, code: int) -> None:
    failures: list[float] = []

    async def scenario(api: Api) -> None:
        workload(api)
        source, ear = Script(), Ear()
        async with working(api, source, poll_seconds=1, outlets=[ear]):
            await until("the watch", lambda: len(api.requests) > 2, lambda: api.requests, 100)
            api.end_watches()
            up = loop_time() + 20

            def down(request: web.Request) -> web.StreamResponse | None:
                if loop_time() >= up:
                    return None
                failures.append(loop_time())
                if code == 0 and request.transport:
                    request.transport.abort()
                return broken(code or 503)

            api.fault = down
            source.answer = due(60)
            await until("the message", lambda: bool(ear.heard), lambda: ear.heard, 100)
            assert loop_time() < up
            await until("its end", lambda: loop_time() >= up, loop_time, 100)
            assert api.writes == []
            await drained(api)
            # The longest pause between two tries is two seconds.
            assert loop_time() - up < 5
        assert ear.occasion() == ["notice", "drained"]
        ((request, grace),) = api.told["train"]
        assert request == "delete" and 30 <= grace <= 60 - 20 - MARGIN + 1
        assert api.told["web"] == api.told["api"] == [("evict", 30)]
        assert api.nodes[NODE]["spec"] == {"taints": [POOL, TAINT, CORDON], "unschedulable": True}

    in_virtual_time(scenario)
    assert 10 <= len(failures) <= 200


@pytest.mark.parametrize("conflicts", [1, 7, 40])
def test_conflicts_are_met_with_a_fresh_look_and_lose_no_taint(
    in_virtual_time: Stage, conflicts: int
) -> None:
    foreign = {"key": "example.com/theirs", "effect": "NoSchedule"}
    met: list[str] = []

    async def scenario(api: Api) -> None:
        workload(api)

        def interfere(request: web.Request) -> web.StreamResponse | None:
            patched = request.method == "PATCH" and request.path == f"/api/v1/nodes/{NODE}"
            if patched and len(met) < conflicts:
                met.append(request.path)
                node = api.nodes[NODE]
                if foreign not in node["spec"]["taints"]:
                    node["spec"]["taints"].append(foreign)
                api.bump(node)
            return None

        api.fault = interfere
        async with working(api, Script(due(120)), poll_seconds=1):
            await until("no pods", lambda: not api.leaving(), lambda: api.told, 100)
            await until("the taint", lambda: TAINT in api.nodes[NODE]["spec"]["taints"], lambda: met, 100)
            await drained(api)
        assert api.nodes[NODE]["spec"]["taints"] == [POOL, foreign, TAINT, CORDON]

    in_virtual_time(scenario)
    assert len(met) == conflicts


@pytest.mark.parametrize("left", [{"taints": [POOL], "unschedulable": True}, {"taints": [POOL]}, {}])
def test_marks_that_a_writer_bound_to_no_version_takes_are_put_back(
    in_virtual_time: Stage, left: dict[str, object]
) -> None:
    async def scenario(api: Api) -> None:
        async with working(api, Script(due(120)), poll_seconds=1):
            await drained(api)
            # As `kubectl taint` does, and whoever writes the list or the Node as it was read a while ago.
            api.nodes[NODE]["spec"] = dict(left)
            api.bump(api.nodes[NODE])
            taken = loop_time()
            await until("the marks", lambda: api.nodes[NODE]["spec"] != left, lambda: api.nodes, 100)
            assert loop_time() - taken <= RECHECK_SECONDS + 1
        spec = api.nodes[NODE]["spec"]
        assert TAINT in spec["taints"] and spec["unschedulable"] is True

    in_virtual_time(scenario)


def test_429s_of_a_budget_until_the_deadline(in_virtual_time: Stage) -> None:
    async def scenario(api: Api) -> None:
        api.add_pod("guarded", node=NODE)
        api.budgets, api.stops = {"guarded"}, {"guarded": 3600}
        answer = due(60)
        ear = Ear()
        async with working(api, Script(answer), poll_seconds=1, outlets=[ear]):
            await until("an empty node", lambda: not api.leaving(), lambda: api.told, 200)
            left = (answer.notices[0].says or 0) - api.now()
            await until("the end", lambda: len(ear.heard) == 2, lambda: ear.heard)
        *refusals, last = api.told["guarded"]
        # Its own grace of 30 s, but for a part of one. Asked after 0.1 s, and then less and less often to every 2 s.
        assert set(refusals) == {("refused", 0)} and 10 <= len(refusals) <= 20
        assert last in (("delete", 29), ("delete", 30))
        assert 2 <= left <= MARGIN + 1
        assert ear.occasion() == ["notice", "drained"]

    in_virtual_time(scenario)


def test_429s_of_an_overloaded_server_until_the_deadline(in_virtual_time: Stage) -> None:
    async def scenario(api: Api) -> None:
        workload(api)
        ear = Ear()
        api.fault = lambda request: broken(429) if "/pods/" in request.path else None
        async with working(api, Script(due(60)), poll_seconds=1, outlets=[ear]):
            await until("the message", lambda: len(ear.heard) == 2, lambda: ear.heard, 200)
            assert api.conditions(NODE)["DrainInProgress"] == "True"
            # The machine is still there: so is its agent.
            api.fault = lambda _: None
            await drained(api)
            await until("the end", lambda: len(ear.heard) == 3, lambda: ear.heard)
        assert api.told == {name: [("delete", 1)] for name in ("train", "web", "api")}
        late, end = ear.heard[1:]
        assert (late["occasion"], late["pods_left"]) == ("deadline-passed", "3")
        assert "3 pods are left: ns/api, ns/train, ns/web" in late["text"]
        assert end["occasion"] == "drained" and "s after the deadline" in end["text"]
        reasons = [event["reason"] for event in api.events]
        assert reasons == ["SpotReclaim", "DeadlinePassed", "Drained"]

    in_virtual_time(scenario)


STEPS = 7
"""Writes of a drain of the workload: the marks, the conditions, why a pod goes, three pods, the conditions again."""


async def test_a_drain_has_so_many_steps(api: Api) -> None:
    workload(api)
    async with working(api, Script(due(120))):
        await drained(api)
    assert len(api.writes) == STEPS, api.writes


@pytest.mark.parametrize("step", range(1, STEPS + 1))
async def test_agent_killed_after_each_of_its_steps(api: Api, step: int) -> None:
    workload(api)
    dead = asyncio.Event()

    def count() -> None:
        if len(api.writes) == step:
            dead.set()

    ear = Ear()
    api.wrote = count
    api.fault = lambda _: broken() if dead.is_set() else None
    async with working(api, Script(due(120)), outlets=[ear]):
        await until("the step", dead.is_set, lambda: api.writes)
    api.fault = lambda _: None
    # The first step is the patch with the marks: from then on the Node alone is enough.
    async with working(api, Script(Unknown("connection refused")), outlets=[ear]):
        await drained(api)
        await until("the end", lambda: "drained" in ear.occasion(), lambda: ear.heard)
    assert api.nodes[NODE]["spec"]["unschedulable"] is True
    assert api.nodes[NODE]["spec"]["taints"].count(TAINT) == 1
    # That the notice came is told once, or not at all by one that was killed between the marks and the message; that
    # the node is empty, once by each agent that finds it so and unsaid.
    assert ear.occasion().count("notice") == 1 or step == 1, ear.heard
    assert ear.occasion().count("drained") in (1, 2), ear.heard


async def test_a_node_is_not_called_drained_by_what_a_dead_watch_does_not_show(api: Api) -> None:
    source = Script()
    async with working(api, source):
        await until("the watch", lambda: len(api.requests) > 2, lambda: api.requests)
        api.add_unseen_pod("unseen", node=NODE)
        api.budgets = {"unseen"}
        source.answer = due(250)
        await until("refusals", lambda: bool(api.told.get("unseen")), lambda: (api.told, api.requests))
        assert [event["reason"] for event in api.events if event["reason"] == "Drained"] == []
        assert api.conditions(NODE).get("Drained") != "True"
