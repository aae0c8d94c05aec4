"""A metadata service on a Unix socket that answers with exactly the bytes it is given."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def service(socket: Path, answering: Answering) -> AsyncIterator[list[bytes]]:
    """Serve at `socket`; gives the list of the requests' bytes as they come in."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answering(writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    try:
        yield requests
    finally:
        server.close()


def whole(status: str, body: bytes, content_type: str = "text/plain") -> Answering:
    """An ordinary answer."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    return answer


def raw(data: bytes) -> Answering:
    """These bytes and then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def dripping(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, for ever."""
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n"')
    while True:
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"2")


async def endless(writer: asyncio.StreamWriter) -> None:
    """A body that does not end, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"2" * 4096 + b"\r\n")
        await writer.drain()


async def silent(_: asyncio.StreamWriter) -> None:
    """Takes the request and never answers."""
    await asyncio.sleep(3600)
