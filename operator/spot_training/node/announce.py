"""Events about this node: for people, best effort, and never in the way of what they tell about."""

import asyncio
import logging
from typing import Final

import aiohttp

from spot_training.api.times import format_micro_time
from spot_training.cluster.client import ApiError, Client, Json
from spot_training.node.logs import fields

log = logging.getLogger(__name__)

EVENTS: Final = "/apis/events.k8s.io/v1/namespaces/default/events"
"""Events about cluster-scoped objects live in the namespace ``default``."""

REPORTER: Final = "spot.training/agent"


class Announcer:
    """Posts Events about one Node in tasks of their own."""

    def __init__(self, client: Client, node: str) -> None:
        self._client, self._node = client, node
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, reason: str, note: str, *, notice: str, now: float, warning: bool = False) -> None:
        """Post one Event: ``now`` is its time, ``notice`` the id of what it is about."""
        task = asyncio.create_task(self._post(reason, note, notice, now, warning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Let the posts that are under way end."""
        await asyncio.gather(*self._tasks)

    async def _post(self, reason: str, note: str, notice: str, now: float, warning: bool) -> None:
        event: Json = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self._node}.spot-", "namespace": "default"},
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "action": "Reclaim",
            "note": f"{note} (notice {notice})",
            "eventTime": format_micro_time(now),
            "reportingController": REPORTER,
            "reportingInstance": self._node,
            # As kubelet does: a node's events are looked up by the name in the place of the UID.
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node},
        }
        try:
            await self._client.create(EVENTS, event)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("cannot post an event", extra=fields(notice=notice, reason=reason, error=str(error)))
