"""Google's metadata server, byte for byte: two keys with their ETags, plain reads and long polls."""

import asyncio
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from tests.unit.node import wire
from tests.unit.node.metadata import Service, ok

ROOT = "GET /computeMetadata/v1/instance/"
KEYS = ("preempted", "maintenance-event")
QUIET = {"preempted": "FALSE", "maintenance-event": "NONE"}


class Server(Service):
    """A metadata server whose values the test sets: each has its ETag, and a long poll waits for the next."""

    def __init__(self) -> None:
        super().__init__({})
        self.values = dict(QUIET)
        self.changed = asyncio.Condition()
        self.waiting = 0
        for key in KEYS:
            self.set(key, QUIET[key])

    def etag(self, key: str) -> str:
        return f"{abs(hash(self.values[key])):016x}"[:16]

    def google(self, key: str) -> wire.Answering:
        return ok(self.values[key], Metadata_Flavor="Google", ETag=self.etag(key))

    def set(self, key: str, value: str) -> None:
        self.values[key] = value
        self.routes[ROOT + key] = self.google(key)
        query = f"?wait_for_change=true&last_etag={self.etag(key)}&timeout_sec="
        self.routes = {line: to for line, to in self.routes.items() if not line.startswith(ROOT + key + "?")}
        self.routes |= {ROOT + key + query + seconds: self.parked(key) for seconds in ("0", "10")}

    async def change(self, key: str, value: str) -> None:
        async with self.changed:
            self.set(key, value)
            self.changed.notify_all()

    def parked(self, key: str) -> wire.Answering:
        before = self.values[key]

        async def answer(writer: asyncio.StreamWriter) -> None:
            seconds = int(parse_qs(urlsplit(self.requests[-1].line).query)["timeout_sec"][0])
            self.waiting += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds), self.changed:
                    await self.changed.wait_for(lambda: self.values[key] != before)
            self.waiting -= 1
            await self.google(key)(writer)

        return answer
