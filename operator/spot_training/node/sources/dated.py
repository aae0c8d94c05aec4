"""Sources that answer "404, or a time": one GET, nothing scheduled or the moment at which the machine goes."""

from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from spot_training.node.notice import RECLAIM, Answer, Limits, Nothing, Notice, Notices
from spot_training.node.sources.fetch import (
    ANSWER_SECONDS,
    NotUnderstoodError,
    Token,
    answered,
    connected,
    fetch,
)


@dataclass(frozen=True)
class Dated:
    """A source whose whole protocol is one URL.

    ``connector`` makes the way to it (a Unix socket, the network). ``parse`` turns the body into seconds since the
    epoch, and raises ``ValueError`` for everything that is not exactly the documented form. ``token``: what the
    service wants to be shown, where it does.
    """

    name: str
    url: str
    limits: Limits
    connector: Callable[[], aiohttp.BaseConnector]
    parse: Callable[[str], float]
    token: Token | None = None
    answer_seconds: float = ANSWER_SECONDS

    async def ask(self) -> Answer:
        """Ask once."""
        return await answered(self._ask(), self.answer_seconds)

    async def _ask(self) -> Answer:
        async with connected(self.connector) as session:
            reply = await (self.token.get(session, self.url) if self.token else fetch(session, self.url))
        if not reply.found():
            return Nothing()
        try:
            says = self.parse(reply.body.decode())
        except (ValueError, OverflowError, RecursionError) as error:
            raise NotUnderstoodError(f"not a time: {reply.body[:60]!r} ({error})") from None
        return Notices((Notice(f"{self.name}-{int(says)}", RECLAIM, self.name, says),))
