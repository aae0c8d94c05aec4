"""Does what was decided: the one status write, then pods, services and claims. Thin."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from spot_training.api import names
from spot_training.api.names import API_VERSION, JOB_KIND
from spot_training.api.status import SpotTrainingJobStatus
from spot_training.cluster.client import ApiError, Client, Json, core_path, job_path
from spot_training.control import pods as manifests
from spot_training.control.act import (
    Action,
    CreateClaim,
    CreatePod,
    CreateService,
    DeleteJob,
    DeletePod,
    DisownClaim,
    OwnClaim,
)
from spot_training.control.cache import Cache
from spot_training.control.patch import merge_patch
from spot_training.control.world import Accepted, Job, Pod, Pool, Refusal

logger = logging.getLogger(__name__)

MAX_CONCURRENT = 128
"""A bare client that makes thousands of pods does best with as many: the API server divides its time among what is
asked of it, and all that pods set in motion asks as well.
"""
NOT_FOUND, CONFLICT, FORBIDDEN, TOO_MANY = 404, 409, 403, 429
PASSING = frozenset({401, NOT_FOUND, 408, CONFLICT, TOO_MANY})
"""Of the codes from 400 to 499, those that say nothing against what was sent."""


class RefusedError(ApiError):
    """The API server does not want one of the objects that an attempt consists of: sent again it is refused again."""

    @property
    def temporary(self) -> bool:
        """Whether another moment may differ, as with a quota."""
        return self.code == FORBIDDEN


class Applier:
    """Writes to the API server, and puts its answers into the cache at once.

    ``changed``: is told of a pod that has come into the cache so, or changed there. The watch brings the same version
    later, which is nothing new then; and a pod that a queue gates does not change for hours.
    """

    def __init__(
        self,
        client: Client,
        cache: Cache,
        changed: Callable[[Pod | None, Pod], None] = lambda before, after: None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._changed = changed
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def write_status(self, job: Job, status: SpotTrainingJobStatus) -> Job:
        """Write the status over the version that was planned from; returns the job as it is now.

        Raises :class:`ApiError` 409 where the job has changed since: nothing was done then.
        """
        body: Json = {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "metadata": {"resourceVersion": job.version},
            "status": merge_patch(job.status.as_read(), status.to_json()),
        }
        raw = await self._client.patch(job_path(job.namespace, job.name, "status"), body)
        self._cache.jobs.put(raw)
        return self._cache.jobs.items[job.key]

    async def dry_run(self, job: Job, pool: Pool | None) -> Accepted | Refusal:
        """Whether the API server would take pod 0; strict, so that a misspelt field is refused, too."""
        attempt = (job.status.current.attempt if job.status.current else 0) + 1
        body = manifests.pod(job, attempt, 0, pool)
        # A pod of that name may be there from an attempt that was never recorded; the name is not in question.
        body["metadata"]["name"] = f"{job.name}-dry-run"
        try:
            made = await self._client.create(
                core_path(job.namespace, "pods"), body, dryRun="All", fieldValidation="Strict"
            )
        except ApiError as error:
            if error.code == FORBIDDEN:
                return Refusal(f"the API server refuses the pods: {error.message}", temporary=True)
            if _refuses(error) or error.code == NOT_FOUND:
                return Refusal(f"the API server refuses the template: {error.message}", temporary=False)
            raise
        return Accepted(made["spec"].get("priority") or 0)

    async def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Perform the actions: claim and service first, pods side by side. Raises the first error, after all."""
        first = [each for each in actions if isinstance(each, CreateClaim | CreateService)]
        rest = [each for each in actions if not isinstance(each, CreateClaim | CreateService)]
        for each in first:
            await self._one(job, each)
        results = await asyncio.gather(*(self._one(job, each) for each in rest), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _one(self, job: Job, action: Action) -> None:
        async with self._slots:
            match action:
                case CreatePod():
                    await self._create_pod(job, action)
                case CreateService():
                    await self._create_service(job)
                case CreateClaim():
                    raw = await self._create(job, "persistentvolumeclaims", manifests.claim(job))
                    if raw is not None:
                        self._cache.claims.put(raw)
                case OwnClaim(name=name):
                    await self._patch_claim(job, name, {"ownerReferences": [manifests.owner(job)]})
                case DisownClaim(name=name, uid=uid):
                    # With another UID it is refused: then it is not the claim that was seen.
                    await self._patch_claim(job, name, {"uid": uid, "ownerReferences": None})
                case DeletePod(name=name, uid=uid, grace=grace):
                    await self._delete_pod(job, name, uid, grace)
                case DeleteJob():
                    await self._delete_job(job)

    async def _create(self, job: Job, plural: str, body: Json) -> Json | None:
        """Create, unless the name is there already: then None. Raises :class:`RefusedError`."""
        try:
            return await self._client.create(core_path(job.namespace, plural), body)
        except ApiError as error:
            if _refuses(error):
                raise RefusedError(
                    error.code, error.reason, error.message, error.details, error.retry_after
                ) from error
            if error.code != CONFLICT:
                raise
            return None

    async def _patch_claim(self, job: Job, name: str, metadata: Json) -> None:
        path = core_path(job.namespace, "persistentvolumeclaims", name)
        self._cache.claims.put(await self._client.patch(path, {"metadata": metadata}))

    async def _create_service(self, job: Job) -> None:
        known = None
        if job.status.current is not None and job.status.current.attempt > 1:
            # It stays from attempt to attempt: looking costs the API server less than a creation that it refuses.
            known = await self._service(job)
        if known is None:
            if await self._create(job, "services", manifests.service(job)) is not None:
                return
            known = await self._service(job)
        owners = {each["uid"] for each in known["metadata"].get("ownerReferences") or ()} if known else set()
        if known is None or job.uid not in owners or "deletionTimestamp" in known["metadata"]:
            # As after deleting a job and making it again: the older one's service is about to go.
            raise RuntimeError(f"the name of service {job.name} is taken by somebody else's service")

    async def _service(self, job: Job) -> Json | None:
        try:
            return await self._client.get(core_path(job.namespace, "services", job.name))
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise
            return None

    async def _create_pod(self, job: Job, wanted: CreatePod) -> None:
        current = job.status.current
        if current is None:
            return
        name = current.pool_of(wanted.index)
        pool = self._cache.pools.items.get(name)
        if pool is None:
            raise LookupError(f"SpotPool {name} is gone; the attempt cannot be completed")
        body = manifests.pod(job, current.attempt, wanted.index, pool, current, wanted.limit, wanted.avoid)
        raw = await self._create(job, "pods", body)
        if raw is None:
            raw = await self._client.get(core_path(job.namespace, "pods", body["metadata"]["name"]))
            if (raw["metadata"].get("labels") or {}).get(names.LABEL_JOB_UID) != job.uid:
                raise RuntimeError(
                    f"the name of pod {body['metadata']['name']} is taken by somebody else's pod"
                )
        self._take_in(raw)

    async def _delete_pod(self, job: Job, name: str, uid: str, grace: int | None) -> None:
        try:
            raw = await self._client.delete(core_path(job.namespace, "pods", name), uid=uid, grace=grace)
        except ApiError as error:
            if error.code not in (NOT_FOUND, CONFLICT):
                raise
            # It is gone, or another object bears its name: what the cache had is history.
            known = self._cache.pods.items.get((job.namespace, name))
            if known is not None and known.uid == uid:
                self._cache.bury(known)
            return
        if raw.get("kind") == "Pod":
            self._take_in(raw)

    def _take_in(self, raw: Json) -> None:
        before, after = self._cache.put_pod(raw)
        if after is not None and after != before:
            self._changed(before, after)

    async def _delete_job(self, job: Job) -> None:
        logger.info("deleting finished job %s/%s: its time to live is over", job.namespace, job.name)
        try:
            await self._client.delete(
                job_path(job.namespace, job.name), uid=job.uid, propagation="Background"
            )
        except ApiError as error:
            if error.code not in (NOT_FOUND, CONFLICT):
                raise


def _refuses(error: ApiError) -> bool:
    return 400 <= error.code < 500 and error.code not in PASSING
