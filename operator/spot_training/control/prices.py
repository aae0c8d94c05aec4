"""The price file: a ConfigMap in the operator's namespace that a job of the user's keeps current.

It is read anew every half minute, by name, which needs leave to get this one ConfigMap and nothing else. A bad entry
is reported and counts as absent; while the file cannot be read, the prices stay as they were.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from spot_training.cluster.client import ApiError, Client, core_path
from spot_training.control.apply import FORBIDDEN, NOT_FOUND
from spot_training.control.cache import Cache
from spot_training.control.draft import Story
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics
from spot_training.control.policies.price import read_price_file

logger = logging.getLogger(__name__)

READ_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 2.0


class PriceFile:
    """Keeps the cache's prices as the ConfigMap ``where`` (namespace, name) has them."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        where: tuple[str, str],
        announcer: Announcer,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._cache = cache
        self._namespace, self._name = where
        self._announcer = announcer
        self._metrics = metrics
        self._now = now
        self._told: dict[str, str] = {}

    async def first(self) -> None:
        """Read the file before anything is decided; what cannot be read now is waited for."""
        while True:
            try:
                await self.read()
                return
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                logger.warning("the price file cannot be read: %s; again in %d s", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    async def run(self, changed: Callable[[], None]) -> None:
        """Read the file again and again until cancelled; ``changed`` is called where it says something else."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                if await self.read():
                    changed()
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                logger.warning("the price file cannot be read, its last prices stay: %s", error)

    async def read(self) -> bool:
        """Read the file; whether its prices are others than before."""
        raw: Any = {}
        path = core_path(self._namespace, "configmaps", self._name)
        try:
            raw = await self._client.get(path)
            prices, troubles = read_price_file(raw.get("data") or {})
            for name in prices.keys() - self._cache.pools.items.keys():
                troubles[name] = "there is no such SpotPool"
        except ApiError as error:
            if error.code not in (NOT_FOUND, FORBIDDEN):
                raise
            prices, troubles = {}, {self._name: f"the price file cannot be read: {error.message}"}
        self._report(raw, troubles)
        before = self._cache.prices
        self._cache.prices = prices
        return prices != before

    def _report(self, raw: Any, troubles: dict[str, str]) -> None:
        self._metrics.price_troubles.set(len(troubles))
        fresh = {key: why for key, why in troubles.items() if self._told.get(key) != why}
        self._told = troubles
        for key, why in fresh.items():
            logger.warning("price file %s/%s: %s: %s", self._namespace, self._name, key, why)
        if fresh and raw:
            about = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "namespace": self._namespace,
                "name": self._name,
                "uid": str(raw["metadata"]["uid"]),
            }
            words = "; ".join(f"{key}: {why}" for key, why in sorted(fresh.items()))
            self._announcer.tell_of(about, (Story("Warning", "PriceInvalid", words),), self._now())
