"""What the watches bring, and what it sets in motion: the caches take it in, the dispatchers look at what it touches.

A standby takes everything in as the leader does, so that it can take over at once, and sets nothing in motion: its
dispatchers are closed. A new leader looks at every job and pool, for what changed while nobody led was told to nobody.

Kopf watches what is ours, jobs and pools (see :mod:`spot_training.control.handlers`); nodes, pods, claims and
volumes are followed directly: tens of thousands of pods would cost a hundred times more by way of kopf, which gives
each object a task and each event a handler's whole context.

What no watch told of, :mod:`spot_training.control.follow` finds; a missing pod is looked up before it means anything.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, cast

from pydantic import ValidationError

from spot_training.cluster.client import Client
from spot_training.control.cache import Cache
from spot_training.control.coalesce import is_progress
from spot_training.control.dispatch import Dispatcher
from spot_training.control.events import Announcer
from spot_training.control.follow import Follower, key_of
from spot_training.control.headroom import Placeholders
from spot_training.control.metrics import Metrics
from spot_training.control.policies.affinity import attachable_to
from spot_training.control.pools import REPORT_SECONDS, PoolReporter
from spot_training.control.reconcile import Reconciler
from spot_training.control.world import Job, Node, Pod

logger = logging.getLogger(__name__)

NOT_LEADING_SECONDS: Final = 0.5
HEADROOM_SECONDS: Final = 0.2
"""A pod that kept a node warm is made again so soon: the autoscaler is to see it while the node is being taken."""


class Operator:
    """The caches, and what an event about each kind sets in motion."""

    def __init__(
        self,
        client: Client,
        metrics: Metrics,
        leading: Callable[[], bool] = lambda: True,
        placeholders: Placeholders | None = None,
    ) -> None:
        self.client = client
        self.metrics = metrics
        self._leading = leading
        self.cache = Cache()
        self.watching = asyncio.Event()
        """Kopf has started."""
        self.announcer = Announcer(client, socket.gethostname(), lambda: len(self.jobs))
        self.reconciler = Reconciler(
            client,
            self.cache,
            self.announcer,
            self._job_changed,
            metrics,
            look=lambda key: self.jobs.add(key),
            waiting=lambda: len(self.jobs),
            pod_changed=self._pod_changed,
        )
        self.placer = self.reconciler.placer
        self._takers: dict[str, Callable[[str | None, Mapping[str, Any]], None]] = {
            "jobs": self._take_job,
            "pools": self._take_pool,
            "nodes": self._take_node,
            "volumes": self._take_volume,
            "claims": self._take_claim,
            "pods": self._take_pod,
        }
        self.jobs = Dispatcher(self._reconcile)
        self.reporter = PoolReporter(
            client, self.cache, self.reconciler.now, self.placer.wake, placeholders, self.announcer
        )
        self.pools = Dispatcher(self.reporter.report, workers=2)
        self.follower = Follower(client, self.cache, self.take, self._forget)
        metrics.follow(
            lambda: (job.status.phase for job in self.cache.jobs.items.values()),
            lambda: len(self.jobs),
            leading,
            lambda: self.cache.pools.items.values(),
        )

    def take(self, kind: str, type_: str | None, raw: Mapping[str, Any]) -> None:
        """Take in one event of a watch and queue what it touches."""
        try:
            self._takers[kind](type_, raw)
        except ValidationError as error:
            logger.error("%s %s does not fit this operator's version: %s", kind, _name(raw), error)
        except (ValueError, LookupError, TypeError, AttributeError):
            # One object that nobody thought of must not stop the work on all others.
            logger.exception("%s %s cannot be read, and is passed over", kind, _name(raw))

    async def _reconcile(self, key: Hashable) -> float | None:
        if not self._leading():
            # Nothing could be written: the Lease was not renewed in time. It will be, or this is not ours any more.
            return NOT_LEADING_SECONDS
        try:
            with self.metrics.reconcile_seconds.time():
                return await self.reconciler.reconcile(key)
        finally:
            self.placer.seen(cast(tuple[str, str], key))

    async def lead(self) -> None:
        """Act, until cancelled."""
        await self._catch_up()
        self.jobs.open()
        self.pools.open()
        try:
            self.placer.expect((*self.cache.waiting(), *self.cache.starting()))
            for key in self.cache.jobs.items:
                self.jobs.add(key)
            for name in self.cache.pools.items:
                self.pools.add(name)
            async with asyncio.TaskGroup() as group:
                for each in (self.jobs, self.pools, self.announcer):
                    group.create_task(each.run())
        finally:
            self.rest()

    def rest(self) -> None:
        """Set nothing in motion until :meth:`lead`."""
        self.jobs.close()
        self.pools.close()
        self.placer.rest()

    async def _catch_up(self) -> None:
        """What the former leader wrote last may not have come yet: GPUs that it gave away would be given again."""
        for kind in ("pools", "jobs"):
            for raw in await self.follower.list(kind):
                self.take(kind, None, raw)

    def _forget(self, kind: str, key: Any, known: Any, version: int) -> None:
        match kind:
            case "pods":
                self.cache.bury(known, version)
                if known.job_uid:
                    self.jobs.add((known.namespace, known.job))
                if known.pool:
                    self.pools.add(known.pool)
            case "jobs":
                self.cache.jobs.drop(key, version=version)
                self.cache.forget_job(known.uid)
                self._job_changed(known, None)
            case "nodes":
                pools = self.cache.supply.pools_of(key)
                self.cache.nodes.drop(key, version=version)
                self._node_changed(known, None, pools)
            case "pools":
                self.cache.pools.drop(key, version=version)
            case "claims":
                self.cache.claims.drop(key, version=version)
                self._wake_claim(key)
            case "volumes":
                self.cache.drop_volume(key)
        self.placer.wake()

    def _take_job(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        key = key_of(raw)
        if type_ == "DELETED":
            gone = self.cache.jobs.remove(raw)
            if gone is not None:
                self.cache.forget_job(gone.uid)
                self._job_changed(gone, None)
            return
        _, before, after = self.cache.jobs.put(raw)
        if after is None or after == before:
            return
        self.jobs.add(key)
        if before is None:
            return
        if before.uid != after.uid:
            self.cache.forget_job(before.uid)
            self._job_changed(before, None)
        else:
            self._job_changed(before, after)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        """A job opened or ended an attempt, or names another claim: capacity and claims may be free for others.

        Between two attempts a job holds its claim, so it must end, be gone or name another to let go of it.
        """
        ended_attempt = before is not None and before.open_attempt and not (after and after.open_attempt)
        ended_job = before is not None and not before.finished and (after is None or after.finished)
        if ended_attempt:
            self.placer.wake()
        moved = before is not None and after is not None and before.claim != after.claim
        if before is not None and (ended_job or moved):
            self._wake_claim((before.namespace, before.claim))
        if after is None and before is not None:
            self.placer.forget(before.key)
        # A machine that was lost is in the timeline, and counts for the breaker.
        lost = before is not None and after is not None and before.status.timeline != after.status.timeline
        for job in (before, after):
            if job is not None and job.status.current is not None:
                for pool in job.status.current.pools:
                    self.pools.add_after(pool, REPORT_SECONDS if lost else self.reporter.pause(pool))

    def _take_pod(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        watched = self.cache.put_agent(raw, removed=type_ == "DELETED")
        if watched is not None:
            for key in self.cache.jobs_on(watched):
                self.jobs.add(key)
        if type_ == "DELETED":
            before, after = None, self.cache.remove_pod(raw)
        else:
            before, after = self.cache.put_pod(raw)
        if after is None or after == before:
            return
        if after.pool:
            self.pools.add_after(after.pool, HEADROOM_SECONDS)
            return
        if after.job_uid:
            self._pod_changed(before, after)
        done = after.ended or after.removed
        if after.claim and done:
            self._wake_claim((after.namespace, after.claim))
        pools = self.cache.supply.pools_of(after.node)
        if pools and (done or before is None or before.node != after.node):
            self.placer.wake()
            for name in pools:
                self.pools.add_after(name, self.reporter.pause(name))

    def _pod_changed(self, before: Pod | None, after: Pod) -> None:
        """A job's pod did."""
        key = after.namespace, after.job
        job = self.cache.jobs.items.get(key)
        self.jobs.add(key, later=is_progress(before, after, job.status.current if job is not None else None))

    def _take_node(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        name = raw["metadata"]["name"]
        if type_ == "DELETED":
            pools = self.cache.supply.pools_of(name)
            gone = self.cache.nodes.remove(raw)
            if gone is not None:
                self._node_changed(gone, None, pools)
            return
        pools = self.cache.supply.pools_of(name)
        _, before, after = self.cache.nodes.put(raw)
        if after is not None and after != before:
            self._node_changed(before, after, pools)

    def _node_changed(self, before: Node | None, after: Node | None, pools_before: tuple[str, ...]) -> None:
        name = after.name if after else before.name if before else ""
        for pool in {*pools_before, *self.cache.supply.pools_of(name)}:
            self.pools.add_after(pool, REPORT_SECONDS)
        for key in self.cache.jobs_on(name):
            self.jobs.add(key)
        self.placer.wake()

    def _take_pool(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        name = raw["metadata"]["name"]
        if type_ == "DELETED":
            self.cache.pools.remove(raw)
            self.placer.wake()
            return
        _, before, after = self.cache.pools.put(raw)
        if after is not None and after != before:
            if before is None or before.spec != after.spec:
                self.placer.wake()
            self.pools.add_after(name, REPORT_SECONDS)

    def _take_claim(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        key = key_of(raw)
        if type_ == "DELETED":
            changed = self.cache.claims.remove(raw) is not None
        else:
            _, before, after = self.cache.claims.put(raw)
            changed = after is not None and after != before
        if changed:
            self._wake_claim(key)

    def _take_volume(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        if type_ == "DELETED":
            self.cache.drop_volume(key_of(raw))
        else:
            self.cache.put_volume(key_of(raw), attachable_to(raw))

    def prices_changed(self) -> None:
        """What was too dear may not be so any more, and pools say what they cost."""
        self.placer.wake()
        for name in self.cache.pools.items:
            self.pools.add_after(name, REPORT_SECONDS)

    def _wake_claim(self, claim: tuple[str, str]) -> None:
        """Look at the jobs that name the claim: whoever had it may be done with it."""
        for key in self.cache.with_claim(claim):
            self.jobs.add(key)


def _name(raw: Mapping[str, Any]) -> str:
    """Namespace and name, for the log."""
    meta = raw.get("metadata") or {}
    return "/".join(filter(None, (meta.get("namespace"), meta.get("name"))))
