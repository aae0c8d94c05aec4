"""Following a collection: what is yielded when watches break, expire and end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from spot_training.cluster.client import ApiError, Client, Json
from spot_training.cluster.reflect import reflect


def thing(name: str, version: int) -> Json:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


class Server:
    """Answers lists and watches from a script; when that is through, the last watch stays silent."""

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists, self.watches = lists, watches
        self.asked: list[tuple[str, str]] = []

    async def get(self, path: str, **query: str) -> Json:
        self.asked.append(("list", query.get("continue", "")))
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        items, more = answer
        meta = {"resourceVersion": "10"} | ({"continue": more} if more else {})
        return {"metadata": meta, "items": items}

    async def watch(self, path: str, version: str) -> AsyncIterator[Json]:
        self.asked.append(("watch", version))
        if not self.watches:
            await asyncio.Event().wait()
        for each in self.watches.pop(0):
            if isinstance(each, Exception):
                raise each
            yield {"type": each[0], "object": each[1]}


async def told(server: Server, waits: list[float], until: int, **options: Any) -> list[str]:
    """The first ``until`` things that are yielded, as ``type name``."""

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    seen = []
    async for type_, raw in reflect(cast(Client, server), "/things", sleep=sleep, **options):
        seen.append(f"{type_} {raw.get('metadata', {}).get('name', '')}".strip())
        if len(seen) == until:
            break
    return seen


async def test_a_list_of_pages_has_one_beginning_and_one_end_and_the_watch_goes_on_from_it() -> None:
    server = Server(
        [([thing("a", 1)], "more"), ([thing("b", 2)], "")],
        [[("ADDED", thing("c", 11)), ("BOOKMARK", thing("", 12)), ("DELETED", thing("a", 13))]],
    )
    seen = await told(server, [], 6)
    assert seen == ["LISTING", "MODIFIED a", "MODIFIED b", "LISTED", "ADDED c", "DELETED a"]
    assert server.asked == [("list", ""), ("list", "more"), ("watch", "10")]


async def test_a_watch_that_ends_goes_on_where_it_was_a_bookmark_counts() -> None:
    server = Server(
        [([], "")],
        [[("ADDED", thing("a", 11)), ("BOOKMARK", thing("", 40))], [("ADDED", thing("b", 41))]],
    )
    assert await told(server, [], 4) == ["LISTING", "LISTED", "ADDED a", "ADDED b"]
    assert server.asked == [("list", ""), ("watch", "10"), ("watch", "40")]


async def test_an_expired_watch_lists_anew() -> None:
    gone = ApiError(410, "Expired", "too old resource version", {}, None)
    server = Server(
        [([thing("a", 1), thing("b", 2)], ""), ([thing("a", 1)], "")],
        [[("MODIFIED", thing("a", 12)), gone]],
    )
    seen = await told(server, [], 8)
    assert seen[:4] == ["LISTING", "MODIFIED a", "MODIFIED b", "LISTED"]
    assert seen[4:] == ["MODIFIED a", "LISTING", "MODIFIED a", "LISTED"], "b went while nobody watched"


async def test_a_list_that_expires_between_its_pages_begins_again() -> None:
    gone = ApiError(410, "Expired", "the provided continue parameter is too old", {}, None)
    server = Server([([thing("a", 1)], "more"), gone, ([thing("b", 2)], "")], [])
    seen = await told(server, [], 5)
    assert seen == ["LISTING", "MODIFIED a", "LISTING", "MODIFIED b", "LISTED"]


async def test_errors_are_tried_again_later_each_time_and_forgotten_after_success(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = OSError("connection refused")
    waits: list[float] = []
    server = Server(
        [refused] * 7 + [([], "")],
        [[OSError("reset"), ("ADDED", thing("never", 0))], [("ADDED", thing("a", 11)), OSError("reset")]],
    )
    seen = await told(server, waits, 2 + 7 + 1)
    assert seen == ["LISTING"] * 8 + ["LISTED", "ADDED a"]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    assert "connection refused" in caplog.text and "/things" in caplog.text


async def test_what_is_due_is_listed_again() -> None:
    server = Server([([], ""), ([thing("a", 1)], "")], [[("ADDED", thing("a", 11))]])
    seen = await told(server, [], 6, relist_seconds=0.0)
    assert seen == ["LISTING", "LISTED", "ADDED a", "LISTING", "MODIFIED a", "LISTED"]
