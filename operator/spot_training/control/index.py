"""Jobs by what others ask about them: who waits, who has a claim, whose attempt is on a node. Plain data.

A pass over one job asks about all others; without these it would go over thousands of them each time. What is in
here follows from the jobs alone and is kept by :meth:`JobIndex.replace`, which is told of every change.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TypeVar

from spot_training.api import names
from spot_training.control.world import Job, Reservation

Key = tuple[str, str]
K = TypeVar("K")


class JobIndex:
    """The jobs that there are, by claim, by node and by whether they wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, str, Key]] = []
        self._with_claim: dict[Key, dict[str, Job]] = defaultdict(dict)
        self._holding: dict[Key, dict[str, Job]] = defaultdict(dict)
        self._on_node: dict[str, dict[str, Job]] = defaultdict(dict)
        self._in_pool: dict[str, dict[str, Job]] = defaultdict(dict)
        self._lost: dict[str, dict[str, Job]] = defaultdict(dict)
        self.starting: dict[str, Job] = {}
        """By UID, the jobs with an attempt that is neither stopped nor running as a whole yet."""

    def replace(self, before: Job | None, after: Job | None) -> None:
        """A job has come (no ``before``), has changed, or is gone (no ``after``)."""
        if before is not None:
            self._drop(before)
        if after is not None:
            self._add(after)

    def waiting(self) -> list[Key]:
        """Jobs that could open an attempt if there were room, oldest first."""
        return [key for _, _, key in self._waiting]

    def with_claim(self, claim: Key) -> list[Key]:
        """Jobs that name the claim (its namespace and name), whatever their state."""
        return [job.key for job in self._with_claim.get(claim, {}).values()]

    def on_node(self, name: str) -> set[Key]:
        """Jobs whose open attempt has a rank on the node, as their status says."""
        return {job.key for job in self._on_node.get(name, {}).values()}

    def in_pool(self, name: str) -> list[Job]:
        """Jobs with an open attempt in the pool."""
        return list(self._in_pool.get(name, {}).values())

    def lost_in(self, pool: str) -> dict[str, str]:
        """When machines of the pool were lost without a notice, by their UID, as far as jobs remember."""
        found: dict[str, str] = {}
        for job in self._lost.get(pool, {}).values():
            for entry in job.status.timeline:
                if entry.lost_uid and entry.stopped_at and entry.pool == pool:
                    found[entry.lost_uid] = max(entry.stopped_at, found.get(entry.lost_uid, ""))
        return found

    def claim_user(self, job: Job) -> Job | None:
        """The oldest other live job that has the job's claim; between two of its attempts it keeps it."""
        users = []
        for other in self.holding((job.namespace, job.claim)):
            first = job.status.current is None or _age(other) < _age(job)
            if other.uid != job.uid and (other.open_attempt or first):
                users.append(other)
        return min(users, key=_age, default=None)

    def holding(self, claim: Key) -> list[Job]:
        """The live jobs that have opened an attempt on the claim, and so keep it until they have ended."""
        return list(self._holding.get(claim, {}).values())

    def _add(self, job: Job) -> None:
        claim = job.namespace, job.claim
        current = job.status.current
        self._with_claim[claim][job.uid] = job
        for pool in _lossy(job):
            self._lost[pool][job.uid] = job
        for ref in current.nodes if current is not None and job.open_attempt else ():
            self._on_node[ref.name][job.uid] = job
        if current is not None and job.open_attempt:
            for pool in current.pools:
                self._in_pool[pool][job.uid] = job
        if job.finished or job.spec.managed_by != names.MANAGED_BY:
            return
        if current is not None:
            self._holding[claim][job.uid] = job
        if current is None or current.end is not None:
            insort(self._waiting, (*_age(job), job.key))
        elif current.stop is None and current.running_at is None:
            self.starting[job.uid] = job

    def _drop(self, job: Job) -> None:
        claim = job.namespace, job.claim
        _remove(self._with_claim, claim, job.uid)
        _remove(self._holding, claim, job.uid)
        self.starting.pop(job.uid, None)
        for pool in _lossy(job):
            _remove(self._lost, pool, job.uid)
        for pool in job.status.current.pools if job.status.current is not None else ():
            _remove(self._in_pool, pool, job.uid)
        for ref in job.status.current.nodes if job.status.current else ():
            _remove(self._on_node, ref.name, job.uid)
        place = bisect_left(self._waiting, (*_age(job), job.key))
        if place < len(self._waiting) and self._waiting[place][2] == job.key:
            del self._waiting[place]


class Reserved:
    """Reservations by UID of their job, and their sums over pods of the same shape.

    The sums are what placement asks for; thousands of jobs that start are a few shapes.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Reservation, ...]] = {}
        self._sums: dict[Reservation, int] = {}
        """Pods of each kind; of the key all counts but its own number of pods."""

    def put(self, uid: str, made: tuple[Reservation, ...]) -> bool:
        """The job with that UID reserves this now; whether that is another than before."""
        before = self._made.pop(uid, ())
        for each in before:
            self._count(each, -each.pods)
        if made:
            self._made[uid] = made
        for each in made:
            self._count(each, each.pods)
        return before != made

    def all(self) -> tuple[Reservation, ...]:
        """What is reserved, one for each kind."""
        return tuple(replace(kind, pods=pods) for kind, pods in self._sums.items())

    def awaiting(self) -> Counter[str]:
        """How many jobs wait for nodes that an autoscaler has to bring, by pool."""
        return Counter(each.pool for made in self._made.values() for each in made if each.awaited)

    def _count(self, made: Reservation, pods: int) -> None:
        kind = replace(made, pods=0)
        self._sums[kind] = self._sums.get(kind, 0) + pods
        if not self._sums[kind]:
            del self._sums[kind]


def _lossy(job: Job) -> set[str]:
    """Pools of which the job remembers a machine that was lost."""
    return {entry.pool for entry in job.status.timeline if entry.lost_uid and entry.pool}


def _age(job: Job) -> tuple[float, str]:
    return job.created, job.uid


def _remove(index: dict[K, dict[str, Job]], key: K, uid: str) -> None:
    held = index.get(key)
    if held is not None:
        held.pop(uid, None)
        if not held:
            del index[key]
