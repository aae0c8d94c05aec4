"""The story that is told: in order, once, and whatever becomes of an Event, the next is told all the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from spot_training.cluster.client import Client
from spot_training.control import events
from spot_training.control.coalesce import MANY
from spot_training.control.draft import Story
from spot_training.control.election import LeaderClient
from spot_training.control.events import PAUSE_SECONDS, Announcer
from tests.unit.control.build import job
from tests.unit.control.objects import Json
from tests.unit.control.server import Server, refusal, serving

NOW = 1_900_000_000.5


@asynccontextmanager
async def announcing(server: Server) -> AsyncIterator[Announcer]:
    async with Client(server.connection, timeout=5) as client:
        made = Announcer(client, "pod-1")
        task = asyncio.create_task(made.run())
        yield made
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def told(server: Server, count: int) -> list[Json]:
    """The Events, when there are so many."""
    try:
        async with asyncio.timeout(20):
            while len(server.objects["events"]) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not {count} Events: {list(server.objects['events'])}") from None
    return sorted(server.objects["events"].values(), key=lambda each: str(each["metadata"]["name"]))


def stories(*reasons: str) -> tuple[Story, ...]:
    return tuple(Story("Normal", reason, f"what {reason} means") for reason in reasons)


async def test_stories_of_one_instant_are_told_in_their_order() -> None:
    async with serving() as server, announcing(server) as announcer:
        announcer.tell(job(), stories("Reclaimed", "Stopped", "Opened"), NOW)
        found = await told(server, 3)
    assert [each["reason"] for each in found] == ["Reclaimed", "Stopped", "Opened"]
    first = found[0]
    assert (first["type"], first["message"]) == ("Normal", "what Reclaimed means")
    assert first["lastTimestamp"] == "2030-03-17T17:46:40Z"
    assert first["reportingInstance"] == "pod-1"
    about = first["involvedObject"]
    assert (about["kind"], about["namespace"], about["name"], about["uid"]) == (
        "SpotTrainingJob",
        "ns",
        "job",
        "job-uid",
    )


@pytest.mark.parametrize("how", ["refused", "hung up"])
async def test_an_event_that_cannot_be_told_holds_up_none(how: str) -> None:
    async with serving() as server, announcing(server) as announcer:
        lost: list[str] = []

        def once(request: web.Request) -> web.StreamResponse | None:
            if lost or request.method != "POST":
                return None
            lost.append(request.path)
            if how == "hung up":
                assert request.transport is not None
                request.transport.abort()
            return refusal(403, "Forbidden", "the namespace is being terminated")

        server.fault = once
        announcer.tell(job(), stories("Lost", "Next"), NOW)
        (found,) = await told(server, 1)
    assert (found["reason"], len(lost)) == ("Next", 1)


async def test_losing_the_lease_costs_the_event_and_ends_nothing() -> None:
    asked: list[bool] = []

    def leading() -> bool:
        asked.append(bool(asked))
        return asked[-1]

    async with serving() as server, LeaderClient(server.connection, leading, timeout=5) as client:
        announcer = Announcer(client, "pod-1")
        announcer.tell(job(), stories("Lost", "Next"), NOW)
        running = asyncio.create_task(announcer.run())
        (found,) = await told(server, 1)
        assert (found["reason"], running.done()) == ("Next", False)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_while_many_jobs_wait_events_give_way_but_come(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [MANY + 1]
    paused = asyncio.Event()
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        if seconds == PAUSE_SECONDS:
            paused.set()
            waiting[0] -= 1
        await sleep(0)

    async with serving() as server, Client(server.connection, timeout=5) as client:
        announcer = Announcer(client, "pod-1", lambda: waiting[0])
        announcer.tell(job(), stories("First", "Second"), NOW)
        monkeypatch.setattr(asyncio, "sleep", pause)
        running = asyncio.create_task(announcer.run())
        await paused.wait()
        monkeypatch.undo()
        found = await told(server, 2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert [each["reason"] for each in found] == ["First", "Second"]
    assert waiting == [MANY], "one pause, for only the first found many waiting"


async def test_a_long_message_is_cut_to_what_an_event_can_hold() -> None:
    async with serving() as server, announcing(server) as announcer:
        announcer.tell(job(), (Story("Normal", "Long", "x" * 5000),), NOW)
        (found,) = await told(server, 1)
    assert found["message"] == "x" * 1024


async def test_too_many_are_dropped_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 2)
    async with serving() as server:
        async with Client(server.connection) as client:
            announcer = Announcer(client, "pod-1")
            announcer.tell(job(), stories("A", "B", "C"), NOW)
        assert "event dropped, too many are pending: ('ns', 'job') C" in caplog.text
