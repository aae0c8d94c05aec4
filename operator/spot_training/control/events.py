"""Events: the story that ``kubectl describe`` tells. Best effort: they never hold up or fail what they tell of."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from spot_training.api import names
from spot_training.api.times import format_micro_time, format_second
from spot_training.cluster.client import ApiError, Client, core_path
from spot_training.control.coalesce import MANY
from spot_training.control.draft import Story
from spot_training.control.election import NotLeadingError
from spot_training.control.world import Job

logger = logging.getLogger(__name__)

COMPONENT = "spot-training-operator"
MAX_NOTE = 1024
MAX_PENDING = 10_000
PAUSE_SECONDS = 0.2
"""Between two Events while many jobs wait to be looked at: their pods come first."""


class Announcer:
    """Posts Events one after the other from a bounded queue; what does not fit any more is dropped and logged.

    ``waiting``: how many jobs wait to be looked at.
    """

    def __init__(self, client: Client, instance: str, waiting: Callable[[], int] = lambda: 0) -> None:
        self._client = client
        self._waiting = waiting
        self._instance = instance
        self._last_id = 0
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_PENDING)

    def tell(self, job: Job, stories: tuple[Story, ...], now: float) -> None:
        """Queue the Events of a pass."""
        about = {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        }
        self.tell_of(about, stories, now)

    def tell_of(self, about: dict[str, str], stories: tuple[Story, ...], now: float) -> None:
        """Queue Events about an object, given as a reference to it, with its namespace."""
        for story in stories:
            try:
                self._queue.put_nowait(self._event(about, story, now))
            except asyncio.QueueFull:
                key = about["namespace"], about["name"]
                logger.warning("event dropped, too many are pending: %s %s", key, story.reason)

    async def run(self) -> None:
        """Post until cancelled. That this process leads no more ends its term, not this."""
        while True:
            event = await self._queue.get()
            if self._waiting() > MANY:
                await asyncio.sleep(PAUSE_SECONDS)
            path = core_path(event["metadata"]["namespace"], "events")
            try:
                await self._client.create(path, event)
            except (
                ApiError,
                NotLeadingError,
                aiohttp.ClientError,
                OSError,
                TimeoutError,
                ValueError,
            ) as error:
                logger.info("event not posted (%s): %s", error, event["message"])

    def _event(self, about: dict[str, str], story: Story, now: float) -> dict[str, Any]:
        """A core/v1 Event: kubectl sorts by its ``lastTimestamp``, and events of one second by their names."""
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{about['name']}.{self._next_id(now):x}", "namespace": about["namespace"]},
            "firstTimestamp": format_second(now),
            "lastTimestamp": format_second(now),
            "count": 1,
            "eventTime": format_micro_time(now),
            "type": story.type,
            "reason": story.reason,
            "action": story.reason,
            "message": story.message[:MAX_NOTE],
            "source": {"component": COMPONENT},
            "reportingComponent": f"{names.GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "involvedObject": about,
        }

    def _next_id(self, now: float) -> int:
        """Nanoseconds that only grow, so that names sort as the events happened."""
        self._last_id = max(self._last_id + 1, int(now * 1e9))
        return self._last_id
