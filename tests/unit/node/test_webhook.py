"""The webhook against a server that answers with exactly the bytes it is given."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from spot_training.node.message import FACTS, parse_body
from spot_training.node.metrics import Metrics
from spot_training.node.post import Posted, check_url, post
from spot_training.node.webhook import TRIES, Webhook
from tests.unit.node import wire
from tests.unit.node.metadata import ok, redirect
from tests.unit.node.receiver import receiver

GIVEN = dict.fromkeys(FACTS, "") | {"text": "it goes", "occasion": "notice", "notice": "eci-1"}
BUSY = wire.raw(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses between two tries, none of which is waited for."""
    made: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncio.sleep", pause)
    yield made


def sent(metrics: Metrics, result: str) -> bool:
    line = f'spot_agent_webhook_messages_total{{occasion="notice",result="{result}"}} 1.0'
    return line in generate_latest(metrics.registry).decode()


async def test_one_post_of_the_filled_in_body() -> None:
    metrics = Metrics()
    async with receiver(ok("ok")) as server:
        hook = Webhook(server.address + "/services/T0/B0/x", parse_body('{"text": "$text!"}'), metrics)
        await hook.send(GIVEN)
    (request,) = server.requests
    assert request.line == "POST /services/T0/B0/x"
    assert request.values("Content-Type") == ["application/json"]
    assert json.loads(request.body) == {"text": "it goes!"}
    assert sent(metrics, "sent")


@pytest.mark.parametrize(
    "trouble",
    [
        wire.whole("500 Internal Server Error", b"oops"),
        wire.whole("503 Service Unavailable", b""),
        wire.whole("408 Request Timeout", b""),
        wire.raw(b"HTTP/1.1 200 OK"),
        wire.raw(b""),
        wire.raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    ],
)
async def test_what_may_pass_is_tried_again_with_growing_pauses(
    trouble: wire.Answering, pauses: list[float]
) -> None:
    metrics = Metrics()
    async with receiver(trouble, trouble, trouble, ok("")) as server:
        await Webhook(server.address, parse_body('{"text": "$text"}'), metrics).send(GIVEN)
    assert len(server.requests) == 4
    assert pauses == [0.5, 1.0, 2.0]
    assert sent(metrics, "sent")


async def test_a_server_says_how_long_to_wait(pauses: list[float]) -> None:
    forever = wire.raw(b"HTTP/1.1 503 No\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n")
    async with receiver(BUSY, forever, ok("")) as server:
        await Webhook(server.address, {}, Metrics()).send(GIVEN)
    assert pauses == [7.0, 10.0]


async def test_it_is_given_up_after_some_tries(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    async with receiver(wire.whole("502 Bad Gateway", b"")) as server:
        await Webhook(server.address + "/secret", {}, metrics).send(GIVEN)
    assert len(server.requests) == TRIES
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    assert sent(metrics, "failed")
    (record,) = caplog.records
    assert record.__dict__["spot_fields"] == {
        "notice": "eci-1",
        "occasion": "notice",
        "tries": TRIES,
        "why": "HTTP status 502",
    }


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "404 Not Found", "410 Gone"])
async def test_a_refusal_is_not_tried_again(status: str) -> None:
    metrics = Metrics()
    async with receiver(wire.whole(status, b"no_service")) as server:
        await Webhook(server.address, {}, metrics).send(GIVEN)
    assert len(server.requests) == 1
    assert sent(metrics, "failed")


async def test_no_redirect_is_followed() -> None:
    metrics = Metrics()
    async with receiver(ok("")) as elsewhere, receiver(redirect(elsewhere.address)) as server:
        await Webhook(server.address, {}, metrics).send(GIVEN)
    assert len(server.requests) == 1 and not elsewhere.requests
    assert sent(metrics, "failed")


@pytest.mark.parametrize("trouble", [wire.silent, wire.endless, wire.dripping])
async def test_one_try_is_bounded_in_time(trouble: wire.Answering) -> None:
    async with receiver(trouble) as server:
        posted = await post(server.address, {}, 0.1)
    # An answer's body is not read: the status alone decides.
    assert posted in (Posted(0, "no answer within 0.1 s"), Posted(200, "HTTP status 200")), posted


async def test_no_complaint_repeats_the_url() -> None:
    for url in ("http://127.0.0.1:1/secret", "http://nowhere.invalid/secret"):
        posted = await post(url, {}, 5)
        assert posted.status == 0 and posted.why
        assert "secret" not in posted.why


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://example.com/a b",
        "https://example.com/x\n",
        "https://[::1/x",
    ],
)
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="not a URL that begins with http:// or https://") as caught:
        check_url(url)
    assert "example" not in str(caught.value) and "passwd" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://hooks.example.com/services/T/B/x?y=z", "http://[::1]:8080"])
def test_what_is_a_url(url: str) -> None:
    assert check_url(url) == url
