"""A server that takes POSTs on the loopback address and answers each with the next of the bytes it is given."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.unit.node import wire
from tests.unit.node.metadata import Request, read_request


@dataclass
class Receiver:
    """What came; the last of the answers is given again and again."""

    answers: list[wire.Answering]
    address: str = ""
    requests: list[Request] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request and answer it."""
        try:
            self.requests.append(await read_request(reader))
            await self.answers[min(len(self.requests), len(self.answers)) - 1](writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(*answers: wire.Answering) -> AsyncIterator[Receiver]:
    """Serve these answers in turn."""
    result = Receiver(list(answers))
    server = await asyncio.start_server(result.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    result.address = f"http://{host}:{port}"
    try:
        yield result
    finally:
        server.close()
