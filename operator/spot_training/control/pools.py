"""Status of SpotPools: what is there, what is free, what is being taken. Derived from the caches, never counted."""

from collections.abc import Callable, Hashable

from spot_training.api.names import API_VERSION, POOL_KIND, POOL_PLURAL
from spot_training.api.pool import GpuCounts, NodeCounts, SpotPoolStatus
from spot_training.cluster.client import ApiError, Client
from spot_training.control import conditions
from spot_training.control.apply import CONFLICT, NOT_FOUND
from spot_training.control.cache import Cache
from spot_training.control.patch import merge_patch
from spot_training.control.policies.placement import free_gpus
from spot_training.control.world import Node, Pool, World


def pool_status(pool: Pool, members: list[Node], world: World, generation: int, now: float) -> SpotPoolStatus:
    """The pool's status in this world; conditions carry over from ``pool.status``. Pure."""
    usable = [node for node in members if node.ready and node.schedulable and node.notice is None]
    free = free_gpus(usable, pool, world)
    total = sum(node.capacity.get(pool.spec.gpu_resource, 0) for node in usable)
    open_nodes = sum(1 for amount in free.values() if amount > 0)
    if open_nodes:
        value, reason, message = True, "Available", f"Currently available ({open_nodes})"
    elif not members:
        value, reason, message = (
            False,
            "NoNodes",
            "No capacity currently available: no node matches nodeSelector",
        )
    else:
        value, reason, message = False, "NoCapacity", "No capacity currently available"
    return SpotPoolStatus(
        observed_generation=generation,
        nodes=NodeCounts(
            total=len(members),
            ready=sum(1 for node in members if node.ready),
            reclaiming=sum(1 for node in members if node.notice is not None),
        ),
        gpus=GpuCounts(total=total, free=sum(free.values())),
        conditions=conditions.put(
            pool.status.conditions, "Available", value, reason, message, generation, now
        ),
    )


class PoolReporter:
    """Writes the status of pools whose nodes or pods have changed."""

    def __init__(self, client: Client, cache: Cache, now: Callable[[], float]) -> None:
        self._client = client
        self._cache = cache
        self._now = now

    async def report(self, name: Hashable) -> float | None:
        """Write the pool's status if it has changed."""
        pool = self._cache.pools.items.get(name)
        if pool is None:
            return None
        world = self._cache.world_of_pools()
        status = pool_status(pool, self._cache.members(pool), world, pool.generation, self._now())
        if status == pool.status:
            return None
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
        return None
