"""A guest agent for each of many agents that run in one process: the same wire format, no thread, no file."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.kit.guest_agent import server


class GuestAgent:
    """What one node's guest agent says.

    ``answered``: when, by the monotonic clock, it first told what is announced now; None as long as it was not asked.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.announced: str | None = None
        self.answered: float | None = None

    def reclaim(self, in_seconds: float) -> float:
        """Announce the end of the machine; returns the monotonic time from which on it does."""
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=in_seconds)
        self.announced, self.answered = at.isoformat(), None
        return time.monotonic()

    def withdraw(self) -> None:
        """Announce nothing any more."""
        self.announced = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen for the length of the block."""
        listening = await asyncio.start_unix_server(self._serve, self.socket)
        try:
            yield
        finally:
            listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            status, kind, body = "404 Not Found", "text/plain", server.NOT_FOUND
            if self.announced is not None:
                status, kind, body = "200 OK", "application/json; charset=utf-8", self._said()
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            if self.announced is not None and self.answered is None:
                self.answered = time.monotonic()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _said(self) -> bytes:
        return json.dumps(self.announced).encode()
