"""A metadata service on the loopback address that answers with exactly the bytes it is given, route by route."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.unit.node import wire


@dataclass
class Request:
    """One request as it came in: ``GET /path``, and the headers as they stood, in lower case names, all of them."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name.lower()]


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request, with its body where it has one."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    request = Request(f"{method} {target}", headers)
    for length in request.values("Content-Length"):
        request.body = await reader.readexactly(int(length))
    return request


@dataclass
class Service:
    """What answers which request. A route that is not there is 404, as everywhere."""

    routes: dict[str, wire.Answering]
    address: str = ""
    requests: list[Request] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The requests without their headers."""
        return [request.line for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            request = await read_request(reader)
            self.requests.append(request)
            answering = self.routes.get(request.line) or wire.whole("404 Not Found", b"404 page not found")
            await answering(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            writer.close()


@asynccontextmanager
async def service(
    routes: Mapping[str, wire.Answering] | None = None,
    serving: Service | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[Service]:
    """Serve these routes, which may change meanwhile, or a service that the test has made."""
    result = serving or Service(dict(routes or {}))
    server = await asyncio.start_server(result.serve, host, port)
    result.address = "http://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield result
    finally:
        server.close()


def ok(body: str | bytes, **headers: str) -> wire.Answering:
    """200 with this body and these headers, ``_`` for ``-``."""
    data = body.encode() if isinstance(body, str) else body
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return wire.raw(head.encode() + data)


def redirect(to: str) -> wire.Answering:
    """302 to another place."""
    return wire.raw(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


HTML = ok("<html><body>Please log in</body></html>")

NONSENSE: dict[str, tuple[wire.Answering, str]] = {
    "html": (HTML, ""),
    "empty": (ok(""), ""),
    "deep": (ok("[" * 400), ""),
    "not text": (ok(b"\xff\xfe\x00"), ""),
    "gzip": (ok(b"\x1f\x8b" + b"\0" * 64), ""),
    "500": (wire.whole("500 Internal Server Error", b"oops"), "500"),
    "503": (wire.whole("503 Service Unavailable", b"x" * 2000), "503"),
    "403": (wire.whole("403 Forbidden", b""), "403"),
    "302": (redirect("http://127.0.0.1:1/elsewhere"), "302"),
    "huge": (ok("2" * 1_000_000), "an answer of more than"),
    "endless": (wire.endless, "an answer of more than"),
    "dripping": (wire.dripping, "no whole answer"),
    "silent": (wire.silent, "no whole answer"),
    "cut off": (wire.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n2026"), "ClientPayloadError"),
    "not HTTP": (wire.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), ""),
    "nothing at all": (wire.raw(b""), ""),
}
"""What every source must take for *unknown*, by a name for the test; with a part of the reason."""


LATE = 0.2
"""Seconds that a source has for an answer that never becomes whole."""


def patience(reason: str) -> float:
    """Seconds for an answer: short only where it is late by design. Elsewhere a busy machine would make it late."""
    return LATE if reason == "no whole answer" else 5.0
