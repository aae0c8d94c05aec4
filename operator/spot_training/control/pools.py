"""Status of SpotPools: what is there, what is free, what is being taken, who uses it; and the nodes they keep warm."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Final

from spot_training.api.names import API_VERSION, POOL_KIND, POOL_PLURAL
from spot_training.api.pool import SpotPoolStatus
from spot_training.api.times import parse_time
from spot_training.cluster.client import ApiError, Client, core_path
from spot_training.control.apply import CONFLICT, NOT_FOUND
from spot_training.control.cache import Cache
from spot_training.control.draft import Story
from spot_training.control.events import Announcer
from spot_training.control.headroom import (
    RETRY_SECONDS,
    Headroom,
    Placeholders,
    headroom,
    placeholder,
    with_headroom,
)
from spot_training.control.ledger import Ledger
from spot_training.control.patch import merge_patch
from spot_training.control.policies.interruptions import machine_key, machines_of, mark_of, remembered
from spot_training.control.poolstatus import Seen, next_look, pool_status
from spot_training.control.world import Node, Pool

REPORT_SECONDS: Final = 1.0
"""Pool status is written at most once in that time: a gang's start changes it many times."""

REST: Final = 50.0
"""It is a count over all nodes and all that start. What jobs and pods change is told again after so many times the
processor's time that the last count took: thousands of them take a fiftieth of the processor.
"""

LONGEST_PAUSE_SECONDS: Final = 5.0


class PoolReporter:
    """Writes the status of pools whose nodes or pods have changed."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        now: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
        placeholders: Placeholders | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._now = now
        self._changed = changed
        self._placeholders = placeholders
        self._announcer = announcer
        self._refused: dict[str, str] = {}
        self._took: dict[str, float] = {}

    def pause(self, name: str) -> float:
        """Seconds after which what jobs and pods have changed in the pool is reported."""
        return min(LONGEST_PAUSE_SECONDS, max(REPORT_SECONDS, REST * self._took.get(name, 0.0)))

    async def report(self, name: Hashable) -> float | None:
        """Write the pool's status if it has changed, and keep its headroom; in how many seconds time alone may change
        something.
        """
        pool = self._cache.pools.items.get(name)
        if pool is None:
            self._refused.pop(str(name), None)
            self._took.pop(str(name), None)
            return None
        now, began = self._now(), time.thread_time()
        status = pool_status(pool, self._seen(pool), now)
        self._took[pool.name] = time.thread_time() - began
        if self._placeholders is None:
            return await self._write(pool, status, None, now)
        made = self._headroom(replace(pool, status=status), self._placeholders, now)
        status, story = with_headroom(pool, status, made, now)
        again = await self._write(pool, status, story, now)
        # A pool that has changed meanwhile is looked at anew before anything is made for it.
        newest = self._cache.pools.items.get(pool.name)
        if again is not None and newest is not None and newest.status == status:
            again = min(again, await self._keep(pool, made, self._placeholders))
        return again

    async def _write(
        self, pool: Pool, status: SpotPoolStatus, story: Story | None, now: float
    ) -> float | None:
        if status == pool.status:
            return next_look(pool, now)
        body = {
            "apiVersion": API_VERSION,
            "kind": POOL_KIND,
            "metadata": {"resourceVersion": self._cache.pools.version(pool.name)},
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
        if story is not None and self._announcer is not None:
            about = {"apiVersion": API_VERSION, "kind": POOL_KIND, "name": pool.name, "uid": pool.uid}
            # Events of what has no namespace are where kubectl looks for them.
            self._announcer.tell_of(about | {"namespace": "default"}, (story,), now)
        return next_look(self._cache.pools.items[pool.name], now)

    def _headroom(self, pool: Pool, settings: Placeholders, now: float) -> Headroom:
        mine = [pod for pod in self._cache.placeholders(pool.name) if pod.namespace == settings.namespace]
        members, nodes = self._cache.supply.members(pool.name), self._cache.supply.nodes
        return headroom(pool, members, nodes, mine, settings, now, self._refused.get(pool.name, ""))

    async def _keep(self, pool: Pool, made: Headroom, settings: Placeholders) -> float:
        """Make and delete what the headroom needs; in how many seconds to try again, where something was refused."""
        for pod in made.delete:
            try:
                raw = await self._client.delete(core_path(pod.namespace, "pods", pod.name), uid=pod.uid)
                if raw.get("kind") == "Pod":
                    self._cache.put_pod(raw)
            except ApiError as error:
                if error.code not in (NOT_FOUND, CONFLICT):
                    raise
        before = self._refused.pop(pool.name, "")
        for index in made.create:
            body = placeholder(pool, index, made.gpus, settings)
            try:
                self._cache.put_pod(await self._client.create(core_path(settings.namespace, "pods"), body))
            except ApiError as error:
                if not 400 <= error.code < 500:
                    raise
                self._refused[pool.name] = f"pod {body['metadata']['name']} cannot be made: {error.message}"
                # Once more at once, to say so.
                return RETRY_SECONDS if self._refused[pool.name] == before else 0.1
        return float("inf")

    def _seen(self, pool: Pool) -> Seen:
        supply = self._cache.supply
        overlaps = tuple(supply.overlaps(pool.name))
        near = {pool.name, *(other for _, other in overlaps)}
        ledger = Ledger(supply, (each for each in self._cache.reservations() if each.pool in near))
        members = supply.members(pool.name)
        resource = pool.spec.gpu_resource
        return Seen(
            members=tuple(members.values()),
            free={name: max(0, ledger.left(name, resource)) for name in members},
            users=tuple(self._cache.users(pool.name)),
            overlaps=overlaps,
            prices=supply.prices,
            lost={uid: parse_time(at) for uid, at in self._cache.lost_in(pool.name).items()},
            vanished=self._vanished(pool, members),
            moved=self._moved(pool, members),
        )

    def _vanished(self, pool: Pool, members: Mapping[str, Node]) -> frozenset[str]:
        """Keys of the machines that were in the pool at the last look, and whose Nodes are gone from the cluster."""
        if not pool.spec.node_deletion_means_gone:
            return frozenset()
        missing = machines_of(pool.status.interruptions)
        for nodes in (members, self._cache.supply.nodes):
            if missing:
                missing -= {machine_key(node.uid) for node in nodes.values()}
        return frozenset(missing)

    def _moved(self, pool: Pool, members: Mapping[str, Node]) -> frozenset[str]:
        """Marks on the pool's nodes that another pool has counted, which the node has left."""
        counted = remembered(pool.status.interruptions)
        marked = ((node, mark_of(node)) for node in members.values())
        fresh = {mark: node for node, mark in marked if mark is not None and mark not in counted}
        if not fresh:
            return frozenset()
        near = self._cache.supply.pools_of
        return frozenset(
            mark
            for name, other in self._cache.pools.items.items()
            for mark in fresh.keys() & remembered(other.status.interruptions)
            if name not in near(fresh[mark].name)
        )
