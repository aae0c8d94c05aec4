"""Sources that answer "404, or a time": one GET, nothing scheduled or the moment at which the machine goes."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from spot_training.node.notice import RECLAIM, Answer, Limits, Nothing, Notice, Notices, Unknown

ANSWER_SECONDS: Final = 2.0
"""From connecting to the last byte, so that a slow drip cannot hold up the polls."""

LONGEST_ANSWER: Final = 512
"""Bytes; a time is 30. Also too short for brackets that nest past the depth of Python's JSON decoder."""

NOBODY_THERE: Final = (errno.ECONNREFUSED, errno.ENOENT)


@dataclass(frozen=True)
class Dated:
    """A source whose whole protocol is one URL.

    ``connector`` makes the way to it (a Unix socket, the network). ``parse`` turns the body into seconds since the
    epoch, and raises ``ValueError`` for everything that is not exactly the documented form.
    """

    name: str
    url: str
    limits: Limits
    connector: Callable[[], aiohttp.BaseConnector]
    parse: Callable[[str], float]
    answer_seconds: float = ANSWER_SECONDS

    async def ask(self) -> Answer:
        """Ask once, over a connection of its own: one kept alive could hide that nobody new is let in."""
        try:
            async with asyncio.timeout(self.answer_seconds):
                status, body = await self._get()
        except TimeoutError:
            return Unknown(f"no whole answer within {self.answer_seconds:g} s")
        except aiohttp.ClientConnectorError as error:
            return Unknown(f"cannot connect: {error}"[:200], error.os_error.errno in NOBODY_THERE)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Unknown(f"{type(error).__name__}: {error}"[:200])
        if status == 404:
            return Nothing()
        if status != 200:
            return Unknown(f"HTTP status {status}")
        if len(body) > LONGEST_ANSWER:
            return Unknown(f"an answer of more than {LONGEST_ANSWER} bytes")
        try:
            says = self.parse(body.decode())
        except (ValueError, OverflowError) as error:
            return Unknown(f"not a time: {body[:60]!r} ({error})"[:200])
        return Notices((Notice(f"{self.name}-{int(says)}", RECLAIM, self.name, says),))

    async def _get(self) -> tuple[int, bytes]:
        """The status, and the body's first ``LONGEST_ANSWER`` bytes and at least one more where there is more."""
        async with (
            aiohttp.ClientSession(
                connector=self.connector(), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            session.get(self.url, allow_redirects=False) as response,
        ):
            body = b""
            while len(body) <= LONGEST_ANSWER and (chunk := await response.content.readany()):
                body += chunk
            return response.status, body
