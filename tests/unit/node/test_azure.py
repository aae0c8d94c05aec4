"""Azure's Scheduled Events: only this machine's, in the documented form; a first answer that takes its time."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Answer, Nothing, Notice, Notices, Unknown
from spot_training.node.sources.azure import Azure, azure
from tests.unit.node import wire
from tests.unit.node.metadata import NONSENSE, ok, patience, service

MACHINE = "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text"
EVENTS = "GET /metadata/scheduledevents?api-version=2020-07-01"
NAME = "aks-gpu-12345678-vmss_0"
EVENT: dict[str, Any] = {
    "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
    "EventStatus": "Scheduled",
    "EventType": "Preempt",
    "ResourceType": "VirtualMachine",
    "Resources": ["aks-gpu-12345678-vmss_1", NAME],
    "NotBefore": "Mon, 11 Apr 2022 22:26:58 GMT",
    "Description": "",
    "EventSource": "Platform",
    "DurationInSeconds": -1,
}
AT = parse_time("2022-04-11T22:26:58Z")
RECLAIM = Notice("azure-C7061BAC-AFDC-4513-B24B-AA5F13A16123", "reclaim", "azure", AT)


def events(*listed: dict[str, Any]) -> wire.Answering:
    return ok(json.dumps({"DocumentIncarnation": 2, "Events": listed}))


async def asked(answering: wire.Answering) -> Answer:
    async with service({MACHINE: ok(NAME), EVENTS: answering}) as cloud:
        return await replace(azure(cloud.address), first_seconds=5.0).ask()


async def test_no_events_are_nothing_and_the_name_is_asked_for_once() -> None:
    async with service({MACHINE: ok(NAME), EVENTS: ok('{"DocumentIncarnation":1,"Events":[]}')}) as cloud:
        source = azure(cloud.address)
        assert await source.ask() == Nothing()
        cloud.routes[EVENTS] = events(EVENT)
        assert await source.ask() == Notices((RECLAIM,))
    assert cloud.lines() == [MACHINE, EVENTS, EVENTS]
    assert all(one.values("Metadata") == ["true"] for one in cloud.requests)


@pytest.mark.parametrize(
    ("change", "notices"),
    [
        ({}, (RECLAIM,)),
        ({"EventType": "Terminate"}, (RECLAIM,)),
        ({"EventType": "Reboot"}, (replace(RECLAIM, kind="maintenance"),)),
        ({"EventType": "Redeploy"}, (replace(RECLAIM, kind="maintenance"),)),
        ({"EventStatus": "Started", "NotBefore": ""}, (replace(RECLAIM, says=None),)),
        ({"Resources": [NAME.upper()]}, (RECLAIM,)),
        # The machine survives these with all its pods, or they are a neighbour's.
        ({"EventType": "Freeze"}, ()),
        ({"EventType": "Sparkle"}, ()),
        ({"Resources": ["aks-gpu-12345678-vmss_1", NAME + "1"]}, ()),
        ({"Resources": []}, ()),
    ],
)
async def test_what_an_event_means(change: dict[str, Any], notices: tuple[Notice, ...]) -> None:
    assert await asked(events(EVENT | change)) == (Notices(notices) if notices else Nothing())


async def test_several_events() -> None:
    other = EVENT | {"EventId": "B", "EventType": "Redeploy"}
    answer = await asked(events(other, EVENT, EVENT | {"EventType": "Freeze"}))
    assert answer == Notices((replace(RECLAIM, id="azure-B", kind="maintenance"), RECLAIM))


async def test_the_first_answer_may_come_behind_several_questions() -> None:
    go = asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await events(EVENT)(writer)

    async with service({MACHINE: ok(NAME), EVENTS: slow}) as cloud:
        source = replace(azure(cloud.address), answer_seconds=0.05)
        for _ in range(3):
            answer = await source.ask()
            assert isinstance(answer, Unknown) and "two minutes" in answer.reason
        assert cloud.lines() == [MACHINE, EVENTS]
        go.set()
        source.answer_seconds = 2.0
        assert await source.ask() == Notices((RECLAIM,))
        # From then on each question has its own short time.
        go.clear()
        source.answer_seconds = 0.05
        answer = await source.ask()
    assert isinstance(answer, Unknown) and "no whole answer within 0.05 s" in answer.reason


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("where", [MACHINE, EVENTS])
async def test_nonsense_is_unknown_with_its_reason(where: str, name: str) -> None:
    answering, reason = NONSENSE[name]
    async with service({MACHINE: ok(NAME), EVENTS: ok('{"Events":[]}')} | {where: answering}) as cloud:
        answer = await replace(azure(cloud.address), first_seconds=patience(reason)).ask()
    assert isinstance(answer, Unknown), answer
    assert reason in answer.reason
    assert 0 < len(answer.reason) <= 200


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "null",
        '{"Events":{}}',
        '{"Events":[1]}',
        '{"Events":[{}]}',
        json.dumps({"Events": [EVENT | {"Resources": NAME}]}),
        json.dumps({"Events": [EVENT | {"NotBefore": "2022-04-11T22:26:58Z"}]}),
        json.dumps({"Events": [EVENT | {"NotBefore": "Mon, 11 Apr 2022 22:26:58 CET"}]}),
        json.dumps({"Events": [EVENT | {"NotBefore": 5}]}),
    ],
)
async def test_another_form_is_unknown(body: str) -> None:
    answer = await asked(ok(body))
    assert isinstance(answer, Unknown) and "not as documented" in answer.reason, answer


async def test_a_missing_header_would_be_400() -> None:
    answer = await asked(
        wire.whole("400 Bad Request", b'{"error":"Bad request. Required metadata header not specified"}')
    )
    assert answer == Unknown("HTTP status 400")


async def test_after_a_failure_the_first_question_is_asked_again() -> None:
    async with service({MACHINE: ok(NAME), EVENTS: wire.whole("500 Oops", b"")}) as cloud:
        source: Azure = azure(cloud.address)
        assert await source.ask() == Unknown("HTTP status 500")
        cloud.routes[EVENTS] = events()
        assert await source.ask() == Nothing()
