"""Looks up what the Events of a pod that does not start complain of. Thin.

Events tell what shows nowhere else: volumes that cannot be mounted, sandboxes that cannot be made. They are many, and
the API server goes over all of a namespace's for each question, so the operator asks little.
"""

from collections.abc import Callable
from typing import Final

from spot_training.cluster.client import Client, core_path
from spot_training.control.cache import Cache
from spot_training.control.world import Job

LOOKUPS_PER_SECOND: Final = 1.0
MAX_WORDS: Final = 600
MAX_KNOWN: Final = 1000


class Complaints:
    """At most one question in a second, for all jobs together; in between, the last answer about the pod stands."""

    def __init__(self, client: Client, cache: Cache, now: Callable[[], float]) -> None:
        self._client = client
        self._cache = cache
        self._now = now
        self._asked_at = float("-inf")
        self._known: dict[str, str] = {}

    async def of(self, job: Job) -> dict[str, str]:
        """By UID of the first pod that is bound and has not started: ``Reason: message`` of its newest warning."""
        attempt = job.status.current.attempt if job.status.current else 0
        waiting = [
            pod
            for pod in self._cache.pods_of(job.uid)
            if pod.attempt == attempt
            and pod.node
            and pod.started_at is None
            and not pod.removed
            and not pod.ended
        ]
        if not waiting:
            return {}
        pod = min(waiting, key=lambda each: (bool(each.trouble), each.index))
        now = self._now()
        if now - self._asked_at < 1 / LOOKUPS_PER_SECOND:
            return {pod.uid: self._known.get(pod.uid, "")}
        self._asked_at = now
        selector = f"involvedObject.uid={pod.uid},type=Warning"
        listed = await self._client.get(core_path(job.namespace, "events"), fieldSelector=selector)
        newest = max(listed["items"], key=_when, default=None)
        said = f"{newest.get('reason', '')}: {newest.get('message', '')}"[:MAX_WORDS] if newest else ""
        self._known.pop(pod.uid, None)
        self._known[pod.uid] = said
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return {pod.uid: said}


def _when(event: dict[str, object]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
