"""Status of SpotPools: what is there, what is free, what is being taken, who uses it."""

from collections.abc import Callable, Hashable

from spot_training.api.names import API_VERSION, POOL_KIND, POOL_PLURAL
from spot_training.cluster.client import ApiError, Client
from spot_training.control.apply import CONFLICT, NOT_FOUND
from spot_training.control.cache import Cache
from spot_training.control.ledger import Ledger
from spot_training.control.patch import merge_patch
from spot_training.control.poolstatus import Seen, next_look, pool_status
from spot_training.control.world import Pool


class PoolReporter:
    """Writes the status of pools whose nodes or pods have changed."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        now: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._now = now
        self._changed = changed

    async def report(self, name: Hashable) -> float | None:
        """Write the pool's status if it has changed; in how many seconds time alone may change it."""
        pool = self._cache.pools.items.get(name)
        if pool is None:
            return None
        now = self._now()
        status = pool_status(pool, self._seen(pool), now)
        if status == pool.status:
            return next_look(pool, now)
        body = {
            "apiVersion": API_VERSION,
            "kind": POOL_KIND,
            "metadata": {"resourceVersion": self._cache.pools.version(name)},
            "status": merge_patch(pool.status.as_read(), status.to_json()),
        }
        try:
            raw = await self._client.patch(f"/apis/{API_VERSION}/{POOL_PLURAL}/{pool.name}/status", body)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            if error.code == CONFLICT:
                return 0.5
            raise
        self._cache.pools.put(raw)
        # Whether the breaker is open decides where jobs may go.
        self._changed()
        return next_look(self._cache.pools.items[name], now)

    def _seen(self, pool: Pool) -> Seen:
        supply = self._cache.supply
        overlaps = tuple(supply.overlaps(pool.name))
        near = {pool.name, *(other for _, other in overlaps)}
        ledger = Ledger(supply, (each for each in self._cache.reservations() if each.pool in near))
        members = supply.members(pool.name)
        resource = pool.spec.gpu_resource
        return Seen(
            members=tuple(members.values()),
            free={name: ledger.free(name).get(resource, 0) for name in members},
            users=tuple(self._cache.users(pool.name)),
            overlaps=overlaps,
        )
