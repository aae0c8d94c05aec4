"""The pods of this node, kept current by a watch, so that a drain knows them the moment a notice comes."""

import asyncio
import logging

import aiohttp

from spot_training.cluster.client import ApiError, Client, Json
from spot_training.node import pods
from spot_training.node.drain import backoff
from spot_training.node.logs import fields
from spot_training.node.pods import Pod

log = logging.getLogger(__name__)

PAGE = "25"
"""Pods a page: 110 pods at once are megabytes of JSON, which an agent of 48 MiB need not hold."""


class PodCache:
    """Pods by UID. ``lists``: how often they were listed; ``changed`` is set at every change."""

    def __init__(self, client: Client, node: str, changed: asyncio.Event) -> None:
        self._client, self.changed = client, changed
        self._selector = f"spec.nodeName={node}"
        self._pods: dict[str, Pod] = {}
        self._watching: asyncio.Task[None] | None = None
        self.lists = 0

    def all(self) -> list[Pod]:
        """The pods as last seen."""
        return list(self._pods.values())

    def refresh(self) -> None:
        """List again: a watch over a dead connection says nothing for minutes."""
        if self._watching:
            self._watching.cancel()

    async def run(self) -> None:
        """Keep the pods current, for ever."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                self._watching = asyncio.create_task(self._watch(version))
                await asyncio.wait([self._watching])
                if not self._watching.cancelled():
                    self._watching.result()
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                failures += 1
                log.warning(
                    "cannot watch this node's pods", extra=fields(error=str(error), failures=failures)
                )
                await asyncio.sleep(backoff(failures))
            finally:
                self.refresh()

    async def _list(self) -> str:
        found: dict[str, Pod] = {}
        query = {"fieldSelector": self._selector, "limit": PAGE}
        while True:
            page = await self._client.get("/api/v1/pods", **query)
            for item in page.get("items") or []:
                pod = pods.read(item)
                found[pod.uid] = pod
            metadata: Json = page["metadata"]
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self._pods, self.lists = found, self.lists + 1
        self.changed.set()
        return str(metadata["resourceVersion"])

    async def _watch(self, version: str) -> None:
        async for event in self._client.watch("/api/v1/pods", version, fieldSelector=self._selector):
            if event["type"] == "BOOKMARK":
                continue
            pod = pods.read(event["object"])
            if event["type"] == "DELETED":
                self._pods.pop(pod.uid, None)
            else:
                self._pods[pod.uid] = pod
            self.changed.set()
