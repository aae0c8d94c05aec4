"""AWS: the instance metadata service, version 2, asked for three things.

- ``spot/instance-action``: 404, or ``{"action":"terminate","time":"2017-09-18T08:22:00Z"}``, at best effort two
  minutes ahead ("Spot Instance interruption notices"). A hibernation begins as it is announced.
- ``events/recommendations/rebalance``: 404, or ``{"noticeTime":"2020-10-27T08:22:00Z"}``: when it was said; no
  deadline.
- ``events/maintenance/scheduled``: 404 or a JSON array of events, ``NotBefore`` as ``21 Jan 2019 09:00:43 GMT``,
  ``State`` active, completed or canceled.

The first two tell of one thing at most and give it no name, only a time, which the service calls approximate (its mock
names another one in each answer): so they are told apart by their kind alone (``Notice.single``).

Pods reach the service where the instances' hop limit is 2 or more; otherwise the agent needs the host's network.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from spot_training.api.times import parse_time
from spot_training.node.notice import (
    MAINTENANCE,
    REBALANCE,
    RECLAIM,
    Answer,
    Limits,
    Nothing,
    Notice,
    Notices,
)
from spot_training.node.sources.fetch import (
    ANSWER_SECONDS,
    LINK_LOCAL,
    LONGEST_LIST,
    NotUnderstoodError,
    Token,
    answered,
    connected,
    merged,
)

NAME: Final = "aws"
LIMITS: Final = Limits(minimum=120.0, horizon=600.0)
META_DATA: Final = "/latest/meta-data"
ACTION: Final = "/spot/instance-action"
HURRIED_SECONDS: Final = 0.2
"""Longer than this a reclamation does not wait for the warnings' answers."""

ACTIONS: Final = ("terminate", "stop", "hibernate")
OVER: Final = ("completed", "canceled")

Parse = Callable[[Any], tuple[Notice, ...]]


@dataclass(frozen=True)
class Aws:
    """The source behind the metadata service at ``address``."""

    address: str
    token: Token
    answer_seconds: float = ANSWER_SECONDS
    name: str = field(default=NAME, init=False)
    limits: Limits = field(default=LIMITS, init=False)

    async def ask(self) -> Answer:
        """Ask for the reclamation, then for the warnings; each answer stands for itself."""
        async with connected() as session:
            reclaim = await answered(self._ask(session, ACTION, instance_action), self.answer_seconds)
            seconds = HURRIED_SECONDS if isinstance(reclaim, Notices) else self.answer_seconds
            warnings = await asyncio.gather(
                *(answered(self._ask(session, path, parse), seconds) for path, parse in WARNINGS)
            )
        return merged([reclaim, *warnings])

    async def _ask(self, session: aiohttp.ClientSession, path: str, parse: Parse) -> Answer:
        reply = await self.token.get(session, self.address + META_DATA + path, LONGEST_LIST)
        if not reply.found():
            return Nothing()
        notices = understood(reply.json(), parse)
        return Notices(notices) if notices else Nothing()


def aws(address: str = LINK_LOCAL) -> Aws:
    """The source behind the metadata service at this address."""
    token = Token(
        f"{address}/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
    )
    return Aws(address, token)


def understood(body: Any, parse: Parse) -> tuple[Notice, ...]:
    """What the JSON says; ``NotUnderstoodError`` for everything that is not exactly the documented form."""
    try:
        return parse(body)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NotUnderstoodError(
            f"not as documented: {str(body)[:80]} ({type(error).__name__}: {error})"
        ) from None


def instance_action(body: Any) -> tuple[Notice, ...]:
    """The notice of ``spot/instance-action``."""
    action, at = body["action"], parse_time(body["time"])
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}")
    name = f"{NAME}-{action}-{int(at)}"
    if action == "hibernate":
        return (Notice(name, RECLAIM, NAME, None, minimum=0.0, single=True),)
    return (Notice(name, RECLAIM, NAME, at, single=True),)


def rebalance(body: Any) -> tuple[Notice, ...]:
    """The notice of ``events/recommendations/rebalance``."""
    name = f"{NAME}-rebalance-{int(parse_time(body['noticeTime']))}"
    return (Notice(name, REBALANCE, NAME, None, single=True),)


def maintenance(body: Any) -> tuple[Notice, ...]:
    """The notices of ``events/maintenance/scheduled`` that are still to come."""
    if not isinstance(body, list):
        raise ValueError("not a list")
    notices = []
    for event in body:
        if event["State"] in OVER:
            continue
        if event["State"] != "active":
            raise ValueError(f"unknown State {event['State']!r}")
        at = datetime.strptime(event["NotBefore"], "%d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        name = f"{NAME}-{str(event['EventId'])[:64]}"
        notices.append(Notice(name, MAINTENANCE, NAME, at.timestamp()))
    return tuple(notices)


WARNINGS: Final[tuple[tuple[str, Parse], ...]] = (
    ("/events/recommendations/rebalance", rebalance),
    ("/events/maintenance/scheduled", maintenance),
)
