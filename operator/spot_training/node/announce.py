"""Telling people: Events about this node, and what is sent out of the cluster. Best effort, never in the way."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

import aiohttp

from spot_training.api.times import format_micro_time
from spot_training.cluster.client import ApiError, Client, Json
from spot_training.node.logs import fields
from spot_training.node.message import Message, Occasion, facts
from spot_training.node.situation import Settings

log = logging.getLogger(__name__)

EVENTS: Final = "/apis/events.k8s.io/v1/namespaces/default/events"
"""Events about cluster-scoped objects live in the namespace ``default``."""

REPORTER: Final = "spot.training/agent"

LONGEST_NOTE: Final = 1024
"""Bytes; the API server refuses an Event with a longer note."""

MOST_UNDER_WAY: Final = 32
"""A source whose notices come and go could otherwise pile up messages to a server that does not answer."""

SPREAD_SECONDS: Final = 1.0
"""What can wait waits for some part of this, drawn by each agent for itself: where many nodes go at once, the API
server has their cordons to take first."""

FLUSH_SECONDS: Final = 3.0
"""So long may what is under way still take when the agent is told to stop: kubelet gives it five."""


def lot() -> float:
    """One agent's part of ``SPREAD_SECONDS``."""
    return random.uniform(0.0, SPREAD_SECONDS)  # noqa: S311 - no secret


def afterwards() -> float:
    """So many seconds after its cordon one agent tells of it: when what the drain asks for, by lot, has been asked."""
    return SPREAD_SECONDS + lot()


class Outlet(Protocol):
    """Something outside the cluster that is told; ``send`` bounds itself in time and tells of its failures."""

    occasions: frozenset[Occasion]

    async def send(self, given: Mapping[str, str], /) -> None:
        """Tell one message by its facts."""


class Announcer:
    """Posts Events about one Node and sends messages, in tasks of their own; in a dry run it only logs."""

    def __init__(self, settings: Settings, client: Client, outlets: Sequence[Outlet] = ()) -> None:
        self._settings, self._client, self._outlets = settings, client, outlets
        self._tasks: set[asyncio.Task[None]] = set()
        self._wait = afterwards()

    def tell(
        self, reason: str, note: str, *, notice: str, now: float, warning: bool = False, at_once: bool = False
    ) -> None:
        """Post one Event: ``now`` is its time, ``notice`` the id of what it is about."""
        if not self._settings.dry_run:
            wait = 0.0 if at_once else self._wait
            self._start(self._post(reason, note, notice, now, warning, wait), notice)

    def send(self, message: Message, now: float) -> None:
        """Send one message to each outlet that wants its occasion."""
        given = facts(message, self._settings.node, self._settings.cluster, now)
        for outlet in self._outlets:
            if message.occasion not in outlet.occasions:
                continue
            if self._settings.dry_run:
                name = type(outlet).__name__
                log.info("dry run: would tell %s", name, extra=fields(notice=message.notice, facts=given))
            else:
                self._start(outlet.send(given), message.notice)

    async def flush(self) -> None:
        """Let what is under way end, for a short while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, telling: Coroutine[None, None, None], notice: str) -> None:
        if len(self._tasks) >= MOST_UNDER_WAY:
            telling.close()
            log.warning("too much is being told already: one message is dropped", extra=fields(notice=notice))
            return
        task = asyncio.create_task(telling)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("telling failed", exc_info=error)

    async def _post(
        self, reason: str, note: str, notice: str, now: float, warning: bool, wait: float
    ) -> None:
        node, end = self._settings.node, f" (notice {notice})"
        event: Json = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{node}.spot-", "namespace": "default"},
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "action": "Reclaim",
            "note": note[: LONGEST_NOTE - len(end)] + end,
            "eventTime": format_micro_time(now),
            "reportingController": REPORTER,
            "reportingInstance": node,
            # As kubelet does: a node's events are looked up by the name in the place of the UID.
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        }
        if wait:
            await asyncio.sleep(wait)
        try:
            await self._client.create(EVENTS, event)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("cannot post an event", extra=fields(notice=notice, reason=reason, error=str(error)))
