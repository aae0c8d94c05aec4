"""Keeps the caches right, whoever leads: follows what does not come through kopf, and compares all with fresh lists.

A deletion that happened while a watch was broken is never told. So the caches are compared with fresh lists every few
minutes and after each time that a watch had to list again.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Set
from typing import Any, Final

import aiohttp

from spot_training.api.names import API_VERSION, JOB_PLURAL, POOL_PLURAL
from spot_training.cluster.client import ApiError, Client
from spot_training.cluster.reflect import LISTED, LISTING, reflect
from spot_training.control.cache import Cache
from spot_training.control.dispatch import Dispatcher

logger = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
RELISTED_SECONDS: Final = 1.0
"""From the first object of a list that kopf had to make again to our own comparison: it has to bring the rest."""
COUNT_SECONDS: Final = 30.0
"""So often it is asked how many jobs and pools there are: of a list that has nothing in it kopf tells nobody."""
LISTS: Final = {
    "jobs": f"/apis/{API_VERSION}/{JOB_PLURAL}",
    "pools": f"/apis/{API_VERSION}/{POOL_PLURAL}",
    "nodes": "/api/v1/nodes",
    "volumes": "/api/v1/persistentvolumes",
    "claims": "/api/v1/persistentvolumeclaims",
    "pods": "/api/v1/pods",
}
FOLLOWED: Final = ("nodes", "volumes", "claims", "pods")
"""What does not come through kopf."""


class Follower:
    """The lists and watches behind the caches.

    ``take``: is given each object, with its kind and what has happened to it. ``forget``: a kind, a key, what was known
    under it, and the version of the list that does not have it any more.
    """

    def __init__(
        self,
        client: Client,
        cache: Cache,
        take: Callable[[str, str | None, Mapping[str, Any]], None],
        forget: Callable[[str, Any, Any, int], None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._take = take
        self._forget = forget
        self.listed = asyncio.Event()
        """All that is followed has been listed once."""
        self._listed: set[str] = set()
        self._lists = Dispatcher(self._compare, workers=1)
        self._counts = Dispatcher(self._count, workers=1)

    async def run(self) -> None:
        """Keep the caches right, until cancelled: no watch tells of what went while it was broken."""
        for kind in LISTS.keys() - set(FOLLOWED):
            self._lists.add_after(kind, RESYNC_SECONDS)
            self._counts.add_after(kind, COUNT_SECONDS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lists.run())
            group.create_task(self._counts.run())
            for kind in FOLLOWED:
                group.create_task(self._follow(kind))

    async def _follow(self, kind: str) -> None:
        known = self._known(kind)
        # What was known as a list began, and what has come by in it. Only what was there before can be a ghost.
        before: dict[Any, Any] | None = None
        there: set[Any] = set()
        async for type_, raw in reflect(self._client, LISTS[kind], relist_seconds=RESYNC_SECONDS):
            if type_ == LISTING:
                before, there = dict(known), set()
            elif type_ == LISTED:
                self._bury(kind, before or {}, there, _version(raw))
                before = None
                self._listed.add(kind)
                if len(self._listed) == len(FOLLOWED):
                    self.listed.set()
            else:
                if before is not None:
                    there.add(key_of(raw))
                self._take(kind, type_, raw)

    async def list(self, kind: str) -> list[Mapping[str, Any]]:
        """What there is of a kind, however often that has to be asked."""
        while True:
            try:
                listed = await self._client.get(LISTS[kind])
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                logger.warning("the %s could not be listed, again in 1 s: %r", kind, error)
                await asyncio.sleep(1.0)
                continue
            items: list[Mapping[str, Any]] = listed["items"]
            return items

    def relisted(self, kind: str) -> None:
        """Kopf has listed anew, as after a watch that expired: what is not in that list is gone, and nobody says so."""
        self._lists.add_after(kind, RELISTED_SECONDS)

    async def _compare(self, kind: Hashable) -> float:
        """Compare a cache with a fresh list; returns in how many seconds to do it again."""
        name = str(kind)
        # Only what was there before the list was made can be a ghost.
        before = dict(self._known(name))
        listed = await self._client.get(LISTS[name])
        for raw in listed["items"]:
            self._take(name, "MODIFIED", raw)
        self._bury(name, before, {key_of(raw) for raw in listed["items"]}, _version(listed))
        return RESYNC_SECONDS

    async def _count(self, kind: Hashable) -> float:
        """Compare a cache with a list where that has fewer; returns in how many seconds to count again."""
        name = str(kind)
        page = await self._client.get(LISTS[name], limit="1")
        more = page["metadata"].get("remainingItemCount")
        known = more is not None or not page["metadata"].get("continue")
        if known and len(page["items"]) + int(more or 0) < len(self._known(name)):
            self.relisted(name)
        return COUNT_SECONDS

    def _known(self, kind: str) -> Mapping[Any, Any]:
        known: dict[str, Mapping[Any, Any]] = {
            "jobs": self._cache.jobs.items,
            "pools": self._cache.pools.items,
            "nodes": self._cache.nodes.items,
            "volumes": self._cache.volumes,
            "claims": self._cache.claims.items,
            "pods": self._cache.pods.items,
        }
        return known[kind]

    def _bury(self, kind: str, before: Mapping[Any, Any], there: Set[Any], version: int) -> None:
        """Forget what was known before a list of that version was made, is not in it, and is known no better since."""
        now = self._known(kind)
        for key, known in before.items():
            if key not in there and now.get(key) is known:
                logger.warning("%s %s is gone, and no watch said so", kind, key)
                self._forget(kind, key, known, version)


def key_of(raw: Mapping[str, Any]) -> Any:
    """By what the caches know an object: its name, with its namespace where it is in one."""
    meta = raw["metadata"]
    return (meta["namespace"], meta["name"]) if "namespace" in meta else meta["name"]


def _version(raw: Mapping[str, Any]) -> int:
    return int(raw["metadata"]["resourceVersion"])
