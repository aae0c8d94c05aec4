"""Whether the API server would take a job's pods, asked by a strict dry run of pod 0 before an attempt is opened.

Hundreds of jobs that are resumed together, as a sweep's are, differ in their names and claims: that one of them is
accepted is said of all for a few seconds. A refusal is said of nobody else: a quota has room for the one and not for
the other, and each is told its own words.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from spot_training.cluster.client import ApiError, Client, core_path
from spot_training.control import pods as manifests
from spot_training.control.apply import FORBIDDEN, NOT_FOUND, refuses
from spot_training.control.world import Accepted, Job, Pool, Refusal

HOLDS_SECONDS: Final = 5.0
"""So long what was accepted is taken to be accepted again; a namespace in which anything is refused begins anew."""


class DryRuns:
    """Asks, and remembers for a moment what was accepted."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._accepted: dict[tuple[str, str], tuple[float, Accepted]] = {}
        self._asked: dict[tuple[str, str], asyncio.Event] = {}

    async def ask(self, job: Job, pool: Pool | None) -> Accepted | Refusal:
        """Whether the API server would take pod 0; strict, so that a misspelt field is refused, too."""
        kind = _kind(job, pool)
        if kind in self._asked:
            await self._asked[kind].wait()
        known = self._accepted.get(kind)
        if known is not None and self._clock() < known[0] + HOLDS_SECONDS:
            return known[1]
        answered = self._asked.setdefault(kind, asyncio.Event())
        try:
            said = await self._ask(job, pool)
        finally:
            self._asked.pop(kind, None)
            answered.set()
        if isinstance(said, Accepted):
            now = self._clock()
            self._accepted = {k: v for k, v in self._accepted.items() if now < v[0] + HOLDS_SECONDS}
            self._accepted[kind] = now, said
        else:
            self.forget(job.namespace)
        return said

    def forget(self, namespace: str) -> None:
        """Something was refused there: what was accepted may not be any more."""
        self._accepted = {kind: known for kind, known in self._accepted.items() if kind[0] != namespace}

    async def _ask(self, job: Job, pool: Pool | None) -> Accepted | Refusal:
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
            if refuses(error) or error.code == NOT_FOUND:
                return Refusal(f"the API server refuses the template: {error.message}", temporary=False)
            raise
        return Accepted(made["spec"].get("priority") or 0)


def _kind(job: Job, pool: Pool | None) -> tuple[str, str]:
    """What the answer depends on: the namespace, and pod 0 without what only tells one job from another."""
    # How long a name is and where its dots are decides whether it can be a host's.
    alike = re.sub("[a-z0-9]", "x", job.name)
    nameless = replace(job, name=alike, uid="", created=0.0)
    body = manifests.pod(nameless, 1, 0, pool)
    for volume in body["spec"]["volumes"]:
        if volume["name"] == manifests.VOLUME:
            volume["persistentVolumeClaim"] = {}
    return job.namespace, json.dumps(body, sort_keys=True)
