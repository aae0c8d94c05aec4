"""One reconcile of one job: world from the caches, plan, one status write, then what the written status asks for."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import cast

from pydantic import ValidationError

from spot_training.api import names
from spot_training.cluster.client import ApiError, Client, core_path, job_path
from spot_training.control.act import CreatePod, actions
from spot_training.control.apply import CONFLICT, NOT_FOUND, Applier, RefusedError
from spot_training.control.cache import Cache
from spot_training.control.claims import volumes_of
from spot_training.control.coalesce import may_wait, wait_seconds
from spot_training.control.complaints import Complaints
from spot_training.control.draft import Plan
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics
from spot_training.control.placer import Placer
from spot_training.control.plan import plan
from spot_training.control.policies.affinity import attachable_to
from spot_training.control.policies.demand import Choice
from spot_training.control.read import seconds
from spot_training.control.world import Accepted, Ask, Job, Pod, Pool, Refusal

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 8
"""A plan asks for a live list, Leases, volumes, a dry run, Events and a pool at most: more rounds are a defect."""


@dataclass
class _Facts:
    """What a pass has looked up in the API server itself."""

    live: bool = False
    leases: dict[str, float] | None = None
    renewals: dict[str, int] | None = None
    dry_run: Accepted | Refusal | None = None
    choice: Choice | None = None
    events: dict[str, str] | None = None


class Reconciler:
    """Reconciles jobs. All that it knows is in the caches; all that it must remember is in the jobs' status."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        announcer: Announcer,
        changed: Callable[[Job | None, Job | None], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        look: Callable[[tuple[str, str]], None] = lambda key: None,
        waiting: Callable[[], int] = lambda: 0,
        pod_changed: Callable[[Pod | None, Pod], None] = lambda before, after: None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._announcer = announcer
        self._changed = changed
        self._metrics = metrics
        self._clock = clock
        self._waiting = waiting
        self._applier = Applier(client, cache, pod_changed)
        self._complaints = Complaints(client, cache, self.now)
        self.placer = Placer(cache, self.now, look)
        self._obstacles: dict[Hashable, tuple[int, Exception]] = {}
        self._written: dict[Hashable, float] = {}
        """When each job's status was last written: forgotten, it is written a moment earlier."""
        self._accepted: dict[Hashable, tuple[str, int, Accepted]] = {}
        """Dry runs of jobs that wait for a decision, by UID and generation: forgotten, they are made again."""

    def now(self) -> float:
        """Seconds since the epoch in the API server's clock."""
        return self._clock() + self._client.clock_offset

    async def reconcile(self, key: Hashable) -> float | None:
        """Bring the job nearer to its end; returns in how many seconds to look again, if at all."""
        job = self._cache.jobs.items.get(key)
        if job is None or job.deleting or job.spec.managed_by != names.MANAGED_BY:
            self._obstacles.pop(key, None)
            self._written.pop(key, None)
            self._accepted.pop(key, None)
            self.placer.forget(cast(tuple[str, str], key))
            return None
        known = job
        try:
            job, made = await self._decide(job)
        except ApiError as error:
            if error.code not in (CONFLICT, NOT_FOUND):
                raise
            await self._refresh(job)
            return 0.05
        if made.asks:
            # Many are decided for together; it is looked at again when that is done.
            return None
        todo = actions(job, self._cache.world(job), self.now())
        if job is known and any(isinstance(each, CreatePod) for each in todo) and await self._outdated(job):
            return 0.05
        try:
            await self._applier.perform(job, todo)
        except Exception as error:
            # The next pass puts it into the job's condition; the dispatcher sees to it that there is one.
            self._obstacles[job.key] = (job.status.current.attempt if job.status.current else 0, error)
            raise
        self._obstacles.pop(job.key, None)
        self._cache.forget_tombstones(job)
        due = [made.wake_at] if made.wake_at is not None else []
        if job is known and job.status != made.status:
            due.append(self._written[key] + wait_seconds(self._waiting()))
        return max(0.05, min(due) - self.now()) if due else None

    async def _decide(self, job: Job) -> tuple[Job, Plan]:
        """Plan and write. What an attempt that opens takes is set aside before anybody else is decided for."""
        facts = _Facts()
        accepted = self._accepted.get(job.key)
        if accepted is not None and accepted[:2] == (job.uid, job.generation):
            facts.dry_run = accepted[2]
        made = await self._plan(job, facts)
        if isinstance(facts.dry_run, Accepted):
            self._accepted[job.key] = job.uid, job.generation, facts.dry_run
        if made.asks:
            return job, made
        if made.request is None:
            self.placer.forget(job.key)
        if not _opens(job, made) or facts.choice is None:
            return await self._write(job, made), made
        self.placer.opening(job, facts.choice)
        try:
            return await self._write(job, made), made
        finally:
            self.placer.opened(job)

    async def _plan(self, job: Job, facts: _Facts) -> Plan:
        now = self.now()
        attempt, obstacle = self._obstacles.get(job.key, (0, None))
        refusal = obstacle if isinstance(obstacle, RefusedError) else None
        for _ in range(MAX_QUESTIONS):
            world = self._cache.world(
                job,
                live=facts.live,
                leases=facts.leases,
                renewals=facts.renewals,
                dry_run=facts.dry_run,
                choice=facts.choice,
                events=facts.events,
                obstacle=f"not all could be created: {obstacle}" if obstacle else "",
                refused=attempt if refusal else 0,
                refused_as="PodsRefused" if refusal is None or refusal.temporary else "TemplateInvalid",
            )
            made = plan(job, world, now)
            if not made.asks:
                return made
            if made.request is not None and {Ask.PLACEMENT, Ask.ROOM} & made.asks:
                # No other task runs between this decision and what is set aside for it.
                decide = self.placer.decide if Ask.PLACEMENT in made.asks else self.placer.probe
                facts.choice = decide(job, made.request)
                if facts.choice is None:
                    return made
                continue
            # Others may be decided for meanwhile.
            facts.choice = None
            await self._look_up(job, made.asks, facts)
            now = self.now()
        raise RuntimeError(f"{job.key}: the planner does not stop asking for {made.asks}")

    async def _write(self, job: Job, made: Plan) -> Job:
        if made.status == job.status or (not made.stories and self._waits(job, made)):
            return job
        written = await self._applier.write_status(job, made.status)
        self._accepted.pop(job.key, None)  # the status says it now
        # A write whose answer was lost is not observed: the status has it, the counters are for rates.
        self._metrics.note_write(job.status, made.status)
        self._metrics.note_charge(job, made.status)
        self._announcer.tell(written, made.stories, self.now())
        for story in made.stories:
            logger.info("%s/%s: %s: %s", job.namespace, job.name, story.reason, story.message)
        self._changed(job, written)
        self._written[job.key] = self.now()
        return written

    def _waits(self, job: Job, made: Plan) -> bool:
        """Whether what there is to write can wait for more of the kind."""
        last = self._written.get(job.key)
        if last is None or last + wait_seconds(self._waiting()) <= self.now():
            return False
        return may_wait(job.status, made.status)

    async def _look_up(self, job: Job, asks: frozenset[Ask], facts: _Facts) -> None:
        if Ask.LIVE_PODS in asks:
            await self._live_pods(job)
            facts.live = True
        if Ask.LEASES in asks:
            facts.leases, facts.renewals = await self._leases(job)
        if Ask.EVENTS in asks:
            facts.events = await self._complaints.of(job)
        if Ask.VOLUMES in asks:
            await self._volumes(job)
        if Ask.DRY_RUN in asks:
            facts.dry_run = await self._applier.dry_run(job, self._likely_pool(job))

    def _likely_pool(self, job: Job) -> Pool | None:
        """A pool that the job's pods may be made in; each has its own selector and tolerations."""
        pools = self._cache.pools.items
        spot = sorted(name for name, pool in pools.items() if pool.spec.capacity_type == "Spot")
        return next((pools[name] for name in job.spec.pools or spot if name in pools), None)

    async def _live_pods(self, job: Job) -> None:
        """Bring the cache up to the API server's own list of the job's pods."""
        listed = await self._client.get(
            core_path(job.namespace, "pods"), labelSelector=f"{names.LABEL_JOB_UID}={job.uid}"
        )
        there = set()
        for raw in listed["items"]:
            self._cache.put_pod(raw)
            there.add(raw["metadata"]["uid"])
        for pod in self._cache.pods_of(job.uid):
            if pod.uid not in there and not pod.removed:
                self._cache.bury(pod, int(listed["metadata"]["resourceVersion"]))

    async def _volumes(self, job: Job) -> None:
        """Look up the job's volumes that its claims name and no watch has brought yet."""
        for name in volumes_of(self._cache.world(job), job):
            if name in self._cache.volumes:
                continue
            try:
                raw = await self._client.get(f"/api/v1/persistentvolumes/{name}")
            except ApiError as error:
                if error.code != NOT_FOUND:
                    raise
                raw = {}
            self._cache.put_volume(name, attachable_to(raw))

    async def _leases(self, job: Job) -> tuple[dict[str, float], dict[str, int]]:
        """When the kubelets of the gang's nodes were last heard of, by their own clocks, and the Leases' versions."""
        refs = job.status.current.nodes if job.status.current else []
        machines = {ref.name: ref.uid for ref in refs}
        found: dict[str, float] = {}
        versions: dict[str, int] = {}

        async def one(name: str) -> None:
            path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
            try:
                raw = await self._client.get(path)
            except ApiError as error:
                if error.code != NOT_FOUND:
                    raise
                return
            owners = {each["uid"] for each in raw["metadata"].get("ownerReferences") or ()}
            if owners and machines[name] not in owners:
                # Renewed by another machine of that name: it says nothing of the one that was there.
                return
            renewed = seconds(raw["spec"].get("renewTime"))
            if renewed is not None:
                found[name] = renewed
                versions[name] = int(raw["metadata"]["resourceVersion"])

        await asyncio.gather(*(one(name) for name in machines))
        return found, versions

    async def _outdated(self, job: Job) -> bool:
        """Whether the job is another by now than it was here. Only a status write proves that it is not, and a
        pass that has none to make would create pods for an attempt that may be over.
        """
        await self._refresh(job)
        newest = self._cache.jobs.items.get(job.key)
        return newest is None or newest.version != job.version

    async def _refresh(self, job: Job) -> None:
        """The cached job was stale, or is gone: take the API server's word."""
        try:
            raw = await self._client.get(job_path(job.namespace, job.name))
            _, before, after = self._cache.jobs.put(raw)
            # The watch brings the same version later, which is nothing new then.
            if before is not None and after is not None and before.uid == after.uid:
                self._changed(before, after)
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise
            gone = self._cache.jobs.drop(job.key, job.uid)
            self._cache.forget_job(job.uid)
            if gone is not None:
                self._changed(gone, None)
        except ValidationError as error:
            logger.error("%s: the job does not fit this operator's version: %s", job.key, error)
            self._cache.jobs.drop(job.key, job.uid)


def _opens(job: Job, made: Plan) -> bool:
    """Whether the plan opens an attempt."""
    before = job.status.current.attempt if job.status.current else 0
    after = made.status.current.attempt if made.status.current else 0
    return after > before
