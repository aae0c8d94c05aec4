"""Approving Azure's events: only where it is wanted, only once drained, only where no other machine is concerned."""

import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import generate_latest

from spot_training.node import approver as approver_module
from spot_training.node.notice import Notices
from spot_training.node.sources.azure import Azure, azure
from tests.unit.node import wire
from tests.unit.node.api import Api
from tests.unit.node.metadata import NONSENSE, Service, ok, service
from tests.unit.node.waiting import until
from tests.unit.node.working import NODE, drained, marked, unmarked, working, workload

MACHINE = "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text"
EVENTS = "GET /metadata/scheduledevents?api-version=2020-07-01"
APPROVE = "POST /metadata/scheduledevents?api-version=2020-07-01"
NAME = "aks-gpu-12345678-vmss_0"
NEIGHBOUR = "aks-gpu-12345678-vmss_1"
ID = "C7061BAC-AFDC-4513-B24B-AA5F13A16123"
NOTICE = f"azure-{ID}"


def event(seconds: float = 300, **change: Any) -> dict[str, Any]:
    """An event that names this machine alone, in so many seconds."""
    at = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)
    return {
        "EventId": ID,
        "EventStatus": "Scheduled",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": [NAME],
        "NotBefore": at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    } | change


def listed(*events: dict[str, Any]) -> wire.Answering:
    return ok(json.dumps({"DocumentIncarnation": 2, "Events": events}))


@asynccontextmanager
async def cloud(*events: dict[str, Any], approvals: bool = True) -> AsyncIterator[tuple[Service, Azure]]:
    async with service({MACHINE: ok(NAME), EVENTS: listed(*events), APPROVE: ok("")}) as made:
        yield made, azure(made.address, approvals)


async def approvable(one: dict[str, Any], approvals: bool = True) -> bool:
    async with cloud(one, approvals=approvals) as (_, source):
        answer = await source.ask()
    assert isinstance(answer, Notices)
    (notice,) = answer.notices
    return notice.approvable


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"EventType": "Terminate"}, True),
        ({"EventType": "Reboot"}, True),
        ({"EventType": "Redeploy"}, True),
        ({"Resources": [NAME.upper()]}, True),
        ({"Resources": [NAME, NEIGHBOUR]}, False),
        ({"Resources": [NEIGHBOUR, NAME]}, False),
        ({"Resources": [NAME, NAME]}, False),
        # It is under way, or nobody knows what it is.
        ({"EventStatus": "Started", "NotBefore": ""}, False),
        ({"EventStatus": "Completed"}, False),
        ({"EventStatus": None}, False),
    ],
)
async def test_which_events_can_be_approved(change: dict[str, Any], expected: bool) -> None:
    assert await approvable(event(**change)) is expected
    assert await approvable(event(**change), approvals=False) is False


async def test_the_request_byte_for_byte() -> None:
    async with cloud(event()) as (made, source):
        assert await source.approve(NOTICE) == ""
    request = made.requests[-1]
    assert request.line == APPROVE
    assert request.values("Metadata") == ["true"]
    assert request.body == b'{"StartRequests": [{"EventId": "%s"}]}' % ID.encode()
    assert made.lines() == [MACHINE, EVENTS, APPROVE]


@pytest.mark.parametrize(
    "now",
    [
        [],
        [event(EventId="B")],
        [event(Resources=[NAME, NEIGHBOUR])],
        [event(Resources=[NEIGHBOUR])],
        [event(EventStatus="Started", NotBefore="")],
    ],
)
async def test_what_has_changed_since_it_was_read_is_not_approved(now: list[dict[str, Any]]) -> None:
    async with cloud(*now) as (made, source):
        refusal = await source.approve(NOTICE)
    assert refusal == "no event of this id waits and names this machine alone"
    assert APPROVE not in made.lines()


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("where", [MACHINE, EVENTS, APPROVE])
async def test_nonsense_is_a_refusal_and_never_an_error(where: str, name: str) -> None:
    answering, _ = NONSENSE[name]
    async with cloud(event()) as (made, source):
        made.routes[where] = answering
        refusal = await replace(source, answer_seconds=0.2).approve(NOTICE)
    # That it was approved is all that is read of the last answer, and its status says so.
    good = where == APPROVE and name in ("html", "empty", "deep", "not text", "gzip")
    assert (refusal == "") is good, refusal
    assert len(refusal) <= 200


@pytest.mark.parametrize(
    "body", ['{"Events":[1]}', '{"Events":[{"EventStatus":"Scheduled"}]}', "[]", '{"Events":5}']
)
async def test_another_form_is_a_refusal(body: str) -> None:
    async with cloud() as (made, source):
        made.routes[EVENTS] = ok(body)
        assert "not as documented" in await source.approve(NOTICE)


# The whole agent.


async def test_an_event_is_approved_once_the_node_is_drained(api: Api) -> None:
    workload(api)
    api.budgets = {"web"}
    async with cloud(event()) as (made, source), working(api, source) as agent:
        await until("refusals", lambda: bool(api.told.get("web")), lambda: api.told)
        asked = len(made.requests)
        await until("more polls", lambda: len(made.requests) > asked + 10, made.lines)
        assert APPROVE not in made.lines()
        api.budgets.clear()
        await until("the approval", lambda: APPROVE in made.lines(), made.lines)
        assert not api.leaving()
        await until("the event", lambda: api.events[-1]["reason"] == "Approved", lambda: api.events)
        asked = len(made.requests)
        await until("more polls", lambda: len(made.requests) > asked + 10, made.lines)
        assert made.lines().count(APPROVE) == 1
        metrics = generate_latest(agent._metrics.registry).decode()
    assert 'spot_agent_approvals_total{result="approved"} 1.0' in metrics
    assert "told azure to go ahead" in api.events[-1]["note"]


async def test_an_event_is_not_approved_while_volumes_are_attached(api: Api) -> None:
    api.nodes[NODE]["status"]["volumesAttached"] = [{"name": "kubernetes.io/csi/disk^1", "devicePath": ""}]
    async with cloud(event()) as (made, source), working(api, source):
        await until("the conditions", lambda: "VolumesAttached" in str(api.nodes), lambda: api.nodes)
        assert APPROVE not in made.lines()
        api.nodes[NODE]["status"]["volumesAttached"] = []
        await until("the approval", lambda: APPROVE in made.lines(), made.lines)


async def test_what_an_earlier_run_found_drained_is_looked_at_again_before_it_is_approved(api: Api) -> None:
    one = event()
    async with cloud(one, approvals=False) as (_, source), working(api, source):
        await drained(api)
    api.add_pod("late", node=NODE)
    api.budgets = {"late"}
    async with cloud(one) as (made, source), working(api, source):
        await until("refusals", lambda: bool(api.told.get("late")), lambda: api.told)
        asked = len(made.requests)
        await until("more polls", lambda: len(made.requests) > asked + 10, made.lines)
        assert APPROVE not in made.lines()
        api.budgets.clear()
        await until("the approval", lambda: APPROVE in made.lines(), made.lines)


async def test_an_approval_that_fails_is_tried_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approver_module, "AGAIN_SECONDS", 0.01)
    async with cloud(event()) as (made, source):
        made.routes[APPROVE] = wire.whole("500 Oops", b"")
        async with working(api, source):
            await until("tries", lambda: made.lines().count(APPROVE) > 2, made.lines)
            made.routes[APPROVE] = ok("")
            await until("the event", lambda: api.events[-1]["reason"] == "Approved", lambda: api.events)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_nothing_is_approved_unasked(api: Api, dry_run: bool) -> None:
    """Not by default, and not in a dry run."""
    async with cloud(event(), approvals=dry_run) as (made, source), working(api, source, dry_run=dry_run):
        if not dry_run:
            await drained(api)
        await until("many polls", lambda: made.lines().count(EVENTS) > 20, made.lines)
    assert APPROVE not in made.lines()


async def test_an_event_that_names_a_neighbour_too_drains_the_node_and_is_left_to_its_time(api: Api) -> None:
    one = event(Resources=[NAME, NEIGHBOUR])
    async with cloud(one) as (made, source), working(api, source):
        await drained(api)
        await until("many polls", lambda: made.lines().count(EVENTS) > 20, made.lines)
        assert APPROVE not in made.lines()


async def test_cordon_only_approves_nothing(api: Api) -> None:
    async with cloud(event()) as (made, source), working(api, source, drain=False):
        await marked(api)
        await until("many polls", lambda: made.lines().count(EVENTS) > 20, made.lines)
        assert APPROVE not in made.lines()
        made.routes[EVENTS] = listed()
        await unmarked(api)
