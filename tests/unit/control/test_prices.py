"""The price file: read by name, bad entries told and passed over, the last prices kept while it cannot be read."""

import asyncio
from decimal import Decimal
from typing import Any, cast

import aiohttp
import pytest

from spot_training.cluster.client import ApiError, Client
from spot_training.control import prices
from spot_training.control.cache import Cache
from spot_training.control.events import Announcer
from spot_training.control.main import main
from spot_training.control.metrics import Metrics
from spot_training.control.prices import PriceFile
from tests.unit.control.objects import Json, raw_pool
from tests.unit.control.sim import refused
from tests.unit.node.waiting import until

PATH = "/api/v1/namespaces/spot-training/configmaps/prices"


class Shelf:
    """An API server with one ConfigMap, and the Events that are posted to it."""

    def __init__(self, **data: str) -> None:
        self.data = data
        self.fault: Exception | None = None
        self.reads = 0
        self.events: list[Json] = []

    async def get(self, path: str, **query: Any) -> Json:
        assert path == PATH
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return {"metadata": {"name": "prices", "uid": "c"}, "data": self.data}

    async def create(self, path: str, body: Json) -> Json:
        self.events.append(body)
        return body


class Place:
    """A price file of the pools `a` and `b`."""

    def __init__(self, shelf: Shelf) -> None:
        self.cache, self.metrics = Cache(), Metrics()
        for name in ("a", "b"):
            self.cache.pools.put(raw_pool(name))
        client = cast(Client, shelf)
        self.announcer = Announcer(client, "test")
        where = ("spot-training", "prices")
        self.file = PriceFile(
            client, self.cache, where, self.announcer, self.metrics, lambda: 1_900_000_000.0
        )

    @property
    def troubles(self) -> float | None:
        return self.metrics.registry.get_sample_value("spot_operator_price_troubles")


async def test_what_it_says_is_in_the_cache_and_the_rest_is_told_once() -> None:
    shelf = Shelf(a="1.20", b="cheap", c="3.00")
    place = Place(shelf)
    assert await place.file.read()
    assert place.cache.prices["a"] == Decimal("1.20")
    assert "b" not in place.cache.prices
    assert place.troubles == 2
    assert not await place.file.read(), "nothing has changed"
    posting = asyncio.create_task(place.announcer.run())
    await until("an event", lambda: bool(shelf.events), lambda: shelf.events)
    posting.cancel()
    (event,) = shelf.events
    assert (event["type"], event["reason"]) == ("Warning", "PriceInvalid")
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "namespace": "spot-training",
        "name": "prices",
        "uid": "c",
    }
    assert event["message"].startswith("b: 'cheap' is no price")
    assert "c: there is no such SpotPool" in event["message"]


async def test_a_price_that_changes_is_noticed_and_one_that_is_mended_is_not_told_of_any_more() -> None:
    shelf = Shelf(a="x")
    place = Place(shelf)
    await place.file.read()
    shelf.data = {"a": "2.00"}
    assert await place.file.read()
    assert place.cache.prices == {"a": Decimal(2)}
    assert place.troubles == 0


@pytest.mark.parametrize("code", [403, 404])
async def test_a_file_that_is_not_there_or_not_to_be_read_is_trouble_and_no_price(code: int) -> None:
    shelf = Shelf(a="1.20")
    place = Place(shelf)
    await place.file.read()
    shelf.fault = refused(code, "Gone", "not for you")
    assert await place.file.read()
    assert (place.cache.prices, place.troubles) == ({}, 1)


async def test_while_the_server_is_in_trouble_the_last_prices_stay() -> None:
    shelf = Shelf(a="1.20")
    place = Place(shelf)
    await place.file.first()
    shelf.fault = refused(500, "InternalError", "later")
    with pytest.raises(ApiError):
        await place.file.read()
    assert place.cache.prices == {"a": Decimal("1.20")}


@pytest.mark.parametrize(
    "fault",
    [
        refused(500, "InternalError", "later"),
        aiohttp.ServerDisconnectedError(),
        TimeoutError(),
        ValueError("no JSON"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_it_is_read_again_and_again_and_a_fault_does_not_end_that(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(prices, "READ_SECONDS", 0.0)
    shelf = Shelf(a="1.20")
    place = Place(shelf)
    changes: list[int] = []
    reading = asyncio.create_task(place.file.run(lambda: changes.append(shelf.reads)))
    await until("the first change", lambda: len(changes) == 1, lambda: changes)
    shelf.fault = fault
    seen = shelf.reads
    await until("three more reads", lambda: shelf.reads >= seen + 3, lambda: shelf.reads)
    shelf.fault, shelf.data = None, {"a": "1.30"}
    await until("the second change", lambda: len(changes) == 2, lambda: changes)
    reading.cancel()
    assert place.cache.prices == {"a": Decimal("1.30")}


async def test_nothing_is_decided_before_it_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "RETRY_SECONDS", 0.0)
    shelf = Shelf(a="1.20")
    shelf.fault = refused(500, "InternalError", "later")
    place = Place(shelf)
    first = asyncio.create_task(place.file.first())
    await until("three reads", lambda: shelf.reads >= 3, lambda: shelf.reads)
    assert not first.done()
    shelf.fault = None
    await first
    assert place.cache.prices == {"a": Decimal("1.20")}


@pytest.mark.parametrize("text", ["prices", "a/b/c", "/prices", "ns/"])
def test_a_price_file_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--price-file={text}"])
    assert (
        f"{text!r} names no ConfigMap: give its namespace and name, as in spot/prices"
        in capsys.readouterr().err
    )
