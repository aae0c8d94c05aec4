"""Whether the API server would take a job's pods: one dry run for all whose pods differ in nothing but names.

A sweep is hundreds of jobs with one template. What only a name decides, such as a policy that looks at it, is said when
the pods themselves are made.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from spot_training.control import pods
from spot_training.control.world import Accepted, Job, Pool, Refusal

ALIKE_SECONDS: Final = 60.0
"""So long what was accepted for one is taken as said for all: policies and quotas change."""

MAX_KNOWN: Final = 1000

Answer = Accepted | Refusal


class Acceptance:
    """Asks with ``dry_run``, by the clock ``now``; what is refused is refused with words of each job's own."""

    def __init__(
        self, dry_run: Callable[[Job, Pool | None], Awaitable[Answer]], now: Callable[[], float]
    ) -> None:
        self._dry_run = dry_run
        self._now = now
        self._known: dict[str, tuple[float, Accepted]] = {}
        self._asked: dict[str, asyncio.Event] = {}

    async def of(self, job: Job, pool: Pool | None) -> Answer:
        """What the API server says of the job's pod 0, or of one like it a moment ago. Raises as ``dry_run`` does."""
        key = _likeness(job, pool)
        if key in self._asked:
            await self._asked[key].wait()
        at, known = self._known.get(key, (0.0, None))
        if known is not None and at <= self._now() < at + ALIKE_SECONDS:
            return known
        return await self._ask(key, job, pool)

    def forget(self, job: Job, pool: Pool | None) -> None:
        """What was accepted in a dry run has been refused since."""
        self._known.pop(_likeness(job, pool), None)

    async def _ask(self, key: str, job: Job, pool: Pool | None) -> Answer:
        mine = self._asked.setdefault(key, asyncio.Event())
        try:
            said = await self._dry_run(job, pool)
        finally:
            mine.set()
            self._asked.pop(key, None)
        self._known.pop(key, None)
        if isinstance(said, Accepted):
            self._known[key] = self._now(), said
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return said


def _likeness(job: Job, pool: Pool | None) -> str:
    """A digest of the pod that would be made, but for the job's own name, UID, age and claim."""
    nobody = replace(job, name="job", uid="uid", created=0.0)
    body = pods.pod(nobody, 1, 0, pool)
    for volume in body["spec"]["volumes"]:
        if volume["name"] == pods.VOLUME:
            volume["persistentVolumeClaim"]["claimName"] = "claim"
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
