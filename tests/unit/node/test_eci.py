"""The ECI source against a server that speaks the wire format byte for byte, and against all kinds of nonsense."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Nothing, Notice, Notices, Unknown
from spot_training.node.sources.eci import eci, parse_quoted_time
from tests.kit.guest_agent.server import Server
from tests.unit.node import wire
from tests.unit.node.metadata import patience
from tests.unit.node.waiting import until

TIME = "2026-04-08T05:00:00+00:00"
AT = parse_time(TIME)


async def test_not_found_is_nothing(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with wire.service(socket, wire.whole("404 Not Found", b"404 page not found")) as requests:
        answer = await eci(str(socket)).ask()
    assert answer == Nothing()
    assert requests[0].startswith(
        b"GET /vm/metadata?key=spot_termination_time HTTP/1.1\r\nHost: localhost\r\n"
    )


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b'"2026-04-08T05:00:00+00:00"', AT),
        (b'"2026-04-08T05:00:00+00:00"\n', AT),
        (b'"2026-04-08T05:00:00Z"', AT),
        (b'"2026-04-08T13:00:00+08:00"', AT),
        (b'"2026-04-08T05:00:00.500+00:00"', AT + 0.5),
    ],
)
async def test_a_quoted_time_is_a_notice(tmp_path: Path, body: bytes, at: float) -> None:
    socket = tmp_path / "s"
    async with wire.service(socket, wire.whole("200 OK", body, "application/json")):
        answer = await eci(str(socket)).ask()
    assert answer == Notices((Notice(f"eci-{int(AT)}", "reclaim", "eci", at),))


@pytest.mark.parametrize(
    ("answering", "reason"),
    [
        (wire.whole("200 OK", b""), "not a time"),
        (wire.whole("200 OK", b"2026-04-08T05:00:00+00:00"), "not a time"),
        (wire.whole("200 OK", b'"2026-04-08T05:00:00"'), "names no time zone"),
        (wire.whole("200 OK", b'"2026-04-08 05:00"'), "names no time zone"),
        (wire.whole("200 OK", b'"99999-01-01T00:00:00Z"'), "not a time"),
        (wire.whole("200 OK", b'"soon"'), "not a time"),
        (wire.whole("200 OK", b"1775624400"), "not a JSON string"),
        (wire.whole("200 OK", b'{"time":"2026-04-08T05:00:00Z"}'), "not a JSON string"),
        (wire.whole("200 OK", b"null"), "not a JSON string"),
        (wire.whole("200 OK", b"[" * 500), "not a time"),
        (wire.whole("200 OK", b"<html><body>Login</body></html>", "text/html"), "not a time"),
        (wire.whole("200 OK", b'"\xff\xfe"'), "not a time"),
        (wire.whole("200 OK", b'"' + b"2" * 100_000 + b'"'), "more than 512 bytes"),
        (wire.whole("200 OK", b"\x1f\x8b" + b"\0" * 64), "not a time"),
        (wire.whole("204 No Content", b""), "HTTP status 204"),
        (wire.whole("401 Unauthorized", b""), "HTTP status 401"),
        (wire.whole("500 Internal Server Error", b"oops"), "HTTP status 500"),
        (wire.whole("503 Service Unavailable", b"oops"), "HTTP status 503"),
        (
            wire.raw(b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n"),
            "status 302",
        ),
        (wire.raw(b""), "ServerDisconnectedError"),
        (wire.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "Bad status line"),
        (wire.raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), ""),
        (wire.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n"2026-04-08T05'), "ClientPayloadError"),
        (wire.endless, "more than 512 bytes"),
        (wire.dripping, "no whole answer"),
        (wire.silent, "no whole answer"),
    ],
)
async def test_everything_else_is_unknown_with_its_reason(
    tmp_path: Path, answering: wire.Answering, reason: str
) -> None:
    socket = tmp_path / "s"
    async with wire.service(socket, answering):
        answer = await replace(eci(str(socket)), answer_seconds=patience(reason)).ask()
    assert isinstance(answer, Unknown), answer
    assert reason in answer.reason
    assert 0 < len(answer.reason) <= 200
    assert not answer.unconnectable


async def test_a_missing_socket_and_one_that_nobody_listens_at(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    missing = await eci(str(socket)).ask()
    async with wire.service(socket, wire.silent):
        pass
    dead = await eci(str(socket)).ask()
    for answer in (missing, dead):
        assert isinstance(answer, Unknown), answer
        assert answer.unconnectable, answer


@pytest.mark.parametrize(
    "body", ["", "5", "[]", '"2026-13-01T00:00:00Z"', '"2026-04-08T05:00:00"', "{}", '""']
)
def test_no_time_is_made_up(body: str) -> None:
    with pytest.raises(ValueError):
        parse_quoted_time(body)


async def test_the_simulated_guest_agent_speaks_the_wire_format(tmp_path: Path) -> None:
    socket, state = tmp_path / "s", tmp_path / "termination"
    source = eci(str(socket))
    with Server(socket, state) as first:
        threading.Thread(target=first.serve_forever, daemon=True).start()
        assert await source.ask() == Nothing()
        state.write_text(TIME + "\n")
        assert await _exchange(socket) == (b"HTTP/1.1 200 OK", f'"{TIME}"'.encode())
        assert await source.ask() == Notices((Notice(f"eci-{int(AT)}", "reclaim", "eci", AT),))
        state.unlink()
        assert await _exchange(socket) == (b"HTTP/1.1 404 Not Found", b"404 page not found")
        assert await _exchange(socket, "/vm/metadata?key=other") == (
            b"HTTP/1.1 404 Not Found",
            b"404 page not found",
        )
        # A guest agent that starts again takes the place of its own dead socket.
        with Server(socket, state) as second:
            threading.Thread(target=second.serve_forever, daemon=True).start()
            assert await source.ask() == Nothing()
            second.shutdown()
        first.shutdown()
    assert isinstance(await source.ask(), Unknown)


async def _exchange(
    socket: Path, path: str = "/vm/metadata?key=spot_termination_time"
) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    await until("the end of the connection", reader.at_eof, lambda: answer)
    return head.split(b"\r\n")[0], body
