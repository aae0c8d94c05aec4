"""Asking a metadata service over HTTP: bounded in time and size, no redirect followed, no cookie kept.

What every source needs, so that whatever a broken or hostile service sends becomes ``Unknown`` with a reason.
"""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError

from spot_training.node.notice import Answer, Nothing, Notices, Unknown

ANSWER_SECONDS: Final = 2.0
"""From connecting to the last byte, so that a slow drip cannot hold up the polls."""

LONGEST_ANSWER: Final = 512
"""Bytes; a time is 30. Also too short for brackets that nest past the depth of Python's JSON decoder."""

LONGEST_LIST: Final = 65_536
"""Bytes of an answer that lists events; one of Azure's can name a hundred machines."""

LINK_LOCAL: Final = "http://169.254.169.254"
"""Where most clouds' metadata service is: by address, since names go through a resolver that pods can change."""

NOBODY_THERE: Final = (errno.ECONNREFUSED, errno.ENOENT)


class NotUnderstoodError(ValueError):
    """An answer that is not in the source's own words; its text is the reason that people read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service sent: the status, the headers, the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def found(self) -> bool:
        """True for 200, False for 404; every other status is refused with ``NotUnderstoodError``."""
        if self.status not in (200, 404):
            raise NotUnderstoodError(f"HTTP status {self.status}")
        return self.status == 200

    def text(self) -> str:
        """The body as text, without the white space around it; ``NotUnderstoodError`` where it is none."""
        try:
            return self.body.decode().strip()
        except UnicodeDecodeError:
            raise NotUnderstoodError(f"not text: {self.body[:60]!r}") from None

    def json(self) -> Any:
        """The body as JSON; ``NotUnderstoodError`` where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise NotUnderstoodError(f"not JSON: {self.body[:60]!r} ({error})") from None


@asynccontextmanager
async def connected(
    connector: Callable[[], aiohttp.BaseConnector] = aiohttp.TCPConnector,
) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections for one question: those kept longer could hide that nobody new is let in."""
    async with aiohttp.ClientSession(
        connector=connector(), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        yield session


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    data: bytes | None = None,
    longest: int = LONGEST_ANSWER,
) -> Reply:
    """One request; an answer of more than ``longest`` bytes is refused with ``NotUnderstoodError``."""
    async with session.request(method, url, headers=headers, data=data, allow_redirects=False) as response:
        body = b""
        while len(body) <= longest and (chunk := await response.content.readany()):
            body += chunk
        if len(body) > longest and response.status == 200:
            raise NotUnderstoodError(f"an answer of more than {longest} bytes")
        return Reply(response.status, response.headers, body)


async def answered(question: Awaitable[Answer], seconds: float = ANSWER_SECONDS) -> Answer:
    """The answer to a question, or ``Unknown`` with the reason why there is none within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await question
    except TimeoutError:
        return Unknown(f"no whole answer within {seconds:g} s")
    except NotUnderstoodError as error:
        return Unknown(str(error)[:200])
    except aiohttp.ClientConnectorError as error:
        # Only a mounted socket can be a dead one: the network needs no new pod.
        dead = isinstance(error, UnixClientConnectorError) and error.os_error.errno in NOBODY_THERE
        return Unknown(f"cannot connect: {error}"[:200], dead)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Unknown(f"{type(error).__name__}: {error}"[:200])


def merged(answers: Sequence[Answer]) -> Answer:
    """One answer of a source's several: no notice is held back because another question has no answer."""
    notices = tuple(notice for part in answers if isinstance(part, Notices) for notice in part.notices)
    unknown = next((part for part in answers if isinstance(part, Unknown)), None)
    if notices:
        return Notices(notices, unknown.reason if unknown else "")
    return unknown or Nothing()


class Token:
    """The session token of a metadata service: taken by PUT, used until half its life is over or it is refused.

    ``url``: where it is given. ``life_header`` asks for its life in seconds, ``header`` shows it.
    """

    SECONDS: Final = 21_600

    def __init__(self, url: str, life_header: str, header: str) -> None:
        self._url, self._life_header, self._header = url, life_header, header
        self._value = ""
        self._until = 0.0

    async def get(self, session: aiohttp.ClientSession, url: str, longest: int = LONGEST_ANSWER) -> Reply:
        """GET with the token; one that is refused with 401 is replaced once."""
        if asyncio.get_running_loop().time() >= self._until:
            await self._renew(session)
        reply = await self._try(session, url, longest)
        if reply.status == 401:
            await self._renew(session)
            reply = await self._try(session, url, longest)
        return reply

    async def _try(self, session: aiohttp.ClientSession, url: str, longest: int) -> Reply:
        return await fetch(session, url, {self._header: self._value}, longest=longest)

    async def _renew(self, session: aiohttp.ClientSession) -> None:
        self._until = 0.0
        reply = await fetch(session, self._url, {self._life_header: str(self.SECONDS)}, method="PUT")
        if reply.status != 200:
            raise NotUnderstoodError(f"no token: HTTP status {reply.status}")
        value = reply.text()
        if not value or not value.isascii() or any(not " " < sign <= "~" for sign in value):
            raise NotUnderstoodError(f"no token: {reply.body[:60]!r}")
        self._value = value
        self._until = asyncio.get_running_loop().time() + self.SECONDS / 2
