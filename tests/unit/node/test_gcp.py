"""Google's metadata server: two keys, plain reads and long polls."""

import asyncio
from dataclasses import replace

import pytest

from spot_training.node.notice import Nothing, Notice, Notices, Unknown, settle
from spot_training.node.sources.gcp import LIMITS, PREEMPTED, TERMINATED, Gcp, gcp
from tests.unit.node import wire
from tests.unit.node.google import KEYS, QUIET, ROOT, Server
from tests.unit.node.metadata import HTML, NONSENSE, ok, patience, redirect, service
from tests.unit.node.waiting import until


async def quiet(source: Gcp) -> None:
    """Ask until the source begins to wait for changes."""
    for _ in range(3):
        assert await source.ask() == Nothing()


@pytest.fixture
def server() -> Server:
    return Server()


async def test_plain_reads_first(server: Server) -> None:
    async with service(serving=server) as cloud:
        await quiet(gcp(cloud.address))
    assert sorted(cloud.lines()) == sorted([ROOT + key for key in KEYS] * 3)
    assert all(one.values("Metadata-Flavor") == ["Google"] for one in cloud.requests)


async def test_a_machine_that_is_being_preempted_already() -> None:
    server = Server()
    server.set("preempted", "TRUE")
    async with service(serving=server) as cloud:
        source = gcp(cloud.address)
        for _ in range(5):
            assert await source.ask() == Notices((PREEMPTED,))
    # Never by a long poll, which would wait for the next change.
    assert not [line for line in cloud.lines() if "wait" in line]
    assert settle(PREEMPTED, 1000.0, LIMITS) == 1030.0


@pytest.mark.parametrize(
    ("key", "value", "notice"),
    [
        ("preempted", "TRUE", PREEMPTED),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", TERMINATED),
    ],
)
async def test_a_change_ends_the_long_poll(server: Server, key: str, value: str, notice: Notice) -> None:
    async with service(serving=server) as cloud:
        source = gcp(cloud.address)
        await quiet(source)
        asked = asyncio.create_task(source.ask())
        await until("both long polls", lambda: server.waiting == 2, cloud.lines)
        assert not asked.done()
        await server.change(key, value)
        assert await asked == Notices((notice,))
        # It stands, and then does not: each answer is read anew, three of them before the next long poll.
        assert await source.ask() == Notices((notice,))
        await server.change(key, QUIET[key])
        seen = len(cloud.requests)
        await quiet(source)
        assert sorted(cloud.lines()[seen:]) == sorted([ROOT + name for name in KEYS] * 3)


async def test_a_long_poll_that_ends_without_a_change_is_nothing(server: Server) -> None:
    async with service(serving=server) as cloud:
        source = replace(gcp(cloud.address), wait_seconds=0)
        await quiet(source)
        assert await source.ask() == Nothing()
    assert len([line for line in cloud.lines() if "wait_for_change=true" in line]) == 2


async def test_a_migration_is_survived(server: Server) -> None:
    server.set("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    async with service(serving=server) as cloud:
        assert await gcp(cloud.address).ask() == Nothing()


async def test_a_long_poll_that_never_ends_is_unknown_and_the_next_question_is_plain(server: Server) -> None:
    async with service(serving=server) as cloud:
        source = gcp(cloud.address)
        await quiet(source)
        source.answer_seconds, source.wait_seconds = 0.2, 0
        for line in [line for line in server.routes if "wait" in line]:
            server.routes[line] = wire.silent
        assert isinstance(await source.ask(), Unknown)
        source.answer_seconds = 2.0
        assert await source.ask() == Nothing()
    assert "wait" not in cloud.lines()[-1]


async def test_without_an_etag_there_is_no_long_poll(server: Server) -> None:
    for key in KEYS:
        server.routes[ROOT + key] = ok(QUIET[key], Metadata_Flavor="Google", ETag="a b&c=d")
    async with service(serving=server) as cloud:
        source = gcp(cloud.address)
        await quiet(source)
        await quiet(source)
    assert not [line for line in cloud.lines() if "wait" in line]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_unknown_with_its_reason(server: Server, name: str, key: str) -> None:
    answering, reason = NONSENSE[name]
    server.routes[ROOT + key] = answering
    async with service(serving=server) as cloud:
        answer = await replace(gcp(cloud.address), answer_seconds=patience(reason)).ask()
    assert isinstance(answer, Unknown), answer
    assert reason in answer.reason
    assert 0 < len(answer.reason) <= 200


@pytest.mark.parametrize(
    "answering",
    [
        # GKE's metadata proxy hides the key.
        wire.whole("404 Not Found", b"not found"),
        ok("TRUE"),
        ok("true", Metadata_Flavor="Google"),
        ok("MAYBE", Metadata_Flavor="Google"),
        ok("", Metadata_Flavor="Google"),
        HTML,
        redirect("http://metadata.google.internal/"),
    ],
)
async def test_a_stranger_is_not_believed(server: Server, answering: wire.Answering) -> None:
    server.routes[ROOT + "preempted"] = answering
    async with service(serving=server) as cloud:
        answer = await gcp(cloud.address).ask()
    assert isinstance(answer, Unknown) and answer.reason.startswith("preempted: "), answer


async def test_a_preemption_is_told_though_the_other_key_has_no_answer(server: Server) -> None:
    server.set("preempted", "TRUE")
    server.routes[ROOT + "maintenance-event"] = wire.whole("503 Service Unavailable", b"")
    async with service(serving=server) as cloud:
        answer = await gcp(cloud.address).ask()
    assert answer == Notices((PREEMPTED,), missing="maintenance-event: HTTP status 503")
