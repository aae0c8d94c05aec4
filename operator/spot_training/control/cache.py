"""What the watches have brought: the newest known state of every object, trimmed.

Nothing here is memory that matters: a new operator fills it by listing. An answer to our own write goes in as
well, so that a pass never sees less than it has done; an older version never replaces a newer one. Pods of ours
that are gone stay as tombstones with the last that was seen of them until their attempt is over, because the
end of a deleted pod is often seen only in its last event.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from spot_training.api.status import Current
from spot_training.control.claims import volumes_of
from spot_training.control.index import JobIndex, Key, Reserved
from spot_training.control.policies.demand import Choice
from spot_training.control.policies.fitting import PODS, shape_of
from spot_training.control.policies.price import agreed_ceiling
from spot_training.control.read import (
    is_ready,
    read_agent,
    read_claim,
    read_job,
    read_node,
    read_pod,
    read_pool,
)
from spot_training.control.store import Store
from spot_training.control.supply import Supply
from spot_training.control.world import (
    Accepted,
    Claim,
    Job,
    Node,
    Pod,
    Pool,
    Refusal,
    Reservation,
    Shape,
    Source,
    Terms,
    World,
    template_claim,
)

Json = Mapping[str, Any]

MAX_INTERNED = 10_000
"""Shapes of pods that are known by identity, so that comparing them costs nothing; and terms of volumes."""


def _name(raw: Json) -> str:
    return str(raw["metadata"]["name"])


def _named(raw: Json) -> Key:
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


class Cache:
    """All stores, and the indices between them."""

    def __init__(self) -> None:
        self.jobs: Store[Job] = Store(read_job, _named, self._job_changed)
        self.pools: Store[Pool] = Store(read_pool, _name, self._pool_changed)
        self.supply = Supply()
        self.nodes: Store[Node] = Store(read_node, _name, self.supply.put_node)
        self.claims: Store[Claim] = Store(read_claim, _named)
        self.pods: Store[Pod] = Store(read_pod, _named)
        self._by_job: dict[str, dict[str, Pod]] = defaultdict(dict)
        self._by_node: dict[str, dict[str, Pod]] = defaultdict(dict)
        self._by_claim: dict[Key, dict[str, Pod]] = defaultdict(dict)
        self._placeholders: dict[str, dict[str, Pod]] = defaultdict(dict)
        self._agents: dict[str, str] = {}
        self.volumes: dict[str, Terms] = {}
        """By name, to which nodes each volume can be attached, which is all that is kept of it; Kubernetes lets nobody
        change that.
        """
        self._terms: dict[Terms, Terms] = {}
        self._blind: dict[str, set[str]] = defaultdict(set)
        """By volume that has not been seen, UIDs of jobs whose reservation was computed without it."""
        self._index = JobIndex()
        self._reserved = Reserved()
        self._stale: set[str] = set()
        """UIDs of jobs whose reservation is computed anew before it is next asked for."""
        self._shapes: dict[str, tuple[tuple[object, ...], Shape]] = {}
        self._interned: dict[Shape, Shape] = {}

    def put_pod(self, raw: Json) -> tuple[Pod | None, Pod | None]:
        """Take in a pod; what was there before and what is there now (None: nothing new)."""
        _, before, after = self.pods.put(raw)
        if after is None:
            return before, None
        if before is not None:
            self._unlink(before, keep_tombstone=before.uid != after.uid)
        self._link(after)
        return before, after

    def remove_pod(self, raw: Json) -> Pod | None:
        """A pod is gone; ``raw`` is the last that was seen of it. Ours leave a tombstone."""
        known = self.pods.remove(raw)
        if known is not None:
            self._unlink(known, keep_tombstone=False)
        last = read_pod(raw, removed=True)
        seen = known is not None or last.uid not in self._by_job.get(last.job_uid, {})
        if seen and self._remembered(last):
            self._by_job[last.job_uid][last.uid] = last
            self._stale.add(last.job_uid)
        return last

    def bury(self, pod: Pod, version: int = 0) -> None:
        """A pod that a live list, of that version, does not have: a tombstone of what the cache knew."""
        if self.pods.drop((pod.namespace, pod.name), pod.uid, version) is not None:
            self._unlink(pod, keep_tombstone=True)

    def forget_tombstones(self, job: Job) -> None:
        """Drop tombstones of attempts before the job's newest, and all of a job that is gone."""
        attempt = job.status.current.attempt if job.status.current else 0
        mine = self._by_job.get(job.uid, {})
        for uid in [uid for uid, pod in mine.items() if pod.removed and pod.attempt < attempt]:
            del mine[uid]

    def forget_job(self, uid: str) -> None:
        """A job is gone: its tombstones go, too."""
        mine = self._by_job.get(uid, {})
        for pod_uid in [pod_uid for pod_uid, pod in mine.items() if pod.removed]:
            del mine[pod_uid]
        if not mine:
            self._by_job.pop(uid, None)
        self._shapes.pop(uid, None)

    def pods_of(self, job_uid: str) -> tuple[Pod, ...]:
        """The pods of a job, tombstones included."""
        return tuple(self._by_job.get(job_uid, {}).values())

    def placeholders(self, pool: str) -> tuple[Pod, ...]:
        """The pods that keep nodes of the pool warm."""
        return tuple(self._placeholders.get(pool, {}).values())

    def put_agent(self, raw: Json, removed: bool = False) -> str | None:
        """Note whether an agent's pod is ready; its node's name where that has changed."""
        node, uid = read_agent(raw), str(raw["metadata"]["uid"])
        if node is None:
            return None
        if not removed and is_ready(raw):
            changed = self._agents.get(node) is None
            self._agents[node] = uid
            return node if changed else None
        # The agent of before may end after the one of now has become ready.
        if self._agents.get(node) != uid:
            return None
        del self._agents[node]
        return node

    def jobs_on(self, node: str) -> set[Key]:
        """Jobs with a pod on the node."""
        bound = {(pod.namespace, pod.job) for pod in self._by_node.get(node, {}).values() if pod.job_uid}
        return bound | self._index.on_node(node)

    def with_claim(self, claim: Key) -> list[Key]:
        """Jobs that name the claim (its namespace and name), whatever their state."""
        return self._index.with_claim(claim)

    def starting(self) -> list[Key]:
        """Jobs with an attempt that is neither stopped nor running as a whole yet."""
        return [job.key for job in self._index.starting.values()]

    def waiting(self) -> list[Key]:
        """Jobs that could open an attempt if there were room, oldest first."""
        return self._index.waiting()

    def world(
        self,
        job: Job,
        *,
        live: bool = False,
        leases: Mapping[str, float] | None = None,
        renewals: Mapping[str, int] | None = None,
        dry_run: Accepted | Refusal | None = None,
        choice: Choice | None = None,
        events: Mapping[str, str] | None = None,
        obstacle: str = "",
        refused: int = 0,
        refused_as: str = "PodsRefused",
    ) -> World:
        """The world of one job, as it is known now."""
        return World(
            pods=self.pods_of(job.uid),
            nodes=self.nodes.items,
            pools=self.pools.items,
            members=self.supply.by_pool,
            silent=self.supply.silent,
            claim=self.claims.items.get((job.namespace, job.claim)),
            claim_user=self._claim_user(job),
            source=self._source(job),
            prices=self.supply.prices,
            agents=self._agents.keys(),
            live=live,
            leases=leases,
            renewals=renewals,
            dry_run=dry_run,
            choice=choice,
            volumes=self.volumes,
            events=events,
            obstacle=obstacle,
            refused=refused,
            refused_as=refused_as,
        )

    def _claim_user(self, job: Job) -> str:
        """Who else has the job's claim, or an empty string."""
        other = self._index.claim_user(job)
        if other is not None:
            return other.name
        # A job that was deleted may still have pods that write.
        for pod in self._by_claim.get((job.namespace, job.claim), {}).values():
            if pod.job_uid != job.uid:
                return f"{pod.job} (its pod {pod.name} has not stopped yet)"
        return ""

    def reservations(self) -> tuple[Reservation, ...]:
        """Room for opened attempts whose pods are not bound yet."""
        self._freshen()
        return self._reserved.all()

    def provisioning(self) -> Counter[str]:
        """By pool, jobs that wait for nodes that its autoscaler has to bring."""
        self._freshen()
        return self._reserved.awaiting()

    @property
    def prices(self) -> Mapping[str, Decimal]:
        """What the price file says of a node's hour, by pool."""
        return self.supply.prices

    @prices.setter
    def prices(self, prices: Mapping[str, Decimal]) -> None:
        self.supply.put_prices(prices)

    def users(self, pool: str) -> list[Job]:
        """Jobs with an open attempt in the pool."""
        return self._index.in_pool(pool)

    def lost_in(self, pool: str) -> dict[str, str]:
        """When machines of the pool were lost without a notice, by their UID, as far as jobs remember."""
        return self._index.lost_in(pool)

    def shape_of(
        self, job: Job, volumes: tuple[Terms, ...] = (), together: int = 1, ceiling: Decimal | None = None
    ) -> Shape:
        """The shape of the job's pods, worked out once."""
        about = (job.generation, volumes, together, ceiling)
        known = self._shapes.get(job.uid)
        if known is None or known[0] != about:
            made = shape_of(job.spec.template.spec, volumes, together, ceiling)
            if len(self._interned) > MAX_INTERNED:
                self._interned.clear()
            known = self._shapes[job.uid] = about, self._interned.setdefault(made, made)
        return known[1]

    def _source(self, job: Job) -> Source | None:
        """What the job resumes from; a job that is gone may have left the claim of its claimTemplate."""
        named = job.spec.checkpoint.resume_from
        if named is None:
            return None
        other = self.jobs.items.get((job.namespace, named.job))
        name = other.claim if other is not None else template_claim(named.job)
        users = [each.name for each in self._index.holding((job.namespace, name)) if each.uid != job.uid]
        users += [
            pod.job
            for pod in self._by_claim.get((job.namespace, name), {}).values()
            if pod.job_uid != job.uid
        ]
        claim = self.claims.items.get((job.namespace, name))
        return Source(named.job, other is not None, name, claim, min(users, default=""))

    def _freshen(self) -> None:
        for uid in self._stale:
            job = self._index.starting.get(uid)
            self.supply.version += self._reserved.put(uid, self._reserves(job) if job else ())
        self._stale.clear()

    def _reserves(self, job: Job) -> tuple[Reservation, ...]:
        """What a job whose attempt is starting reserves, in each of its pools."""
        current = job.status.current
        if current is None or (current.queue and current.admitted_at is None):
            return ()
        apart = len(current.on_demand.ranks) if current.on_demand is not None else 0
        missing = dict(zip(current.pools, (job.replicas - apart, apart), strict=False))
        avoid = frozenset(current.avoid)
        for pod in self.pods_of(job.uid):
            if pod.attempt == current.attempt and (pod.node or pod.ended):
                missing[current.pool_of(pod.index)] -= 1
        return tuple(
            Reservation(
                pool,
                self._opened_shape(job, current, pool),
                pods,
                current.node or "",
                avoid,
                pool in current.provisioned,
            )
            for pool, pods in missing.items()
            if pods > 0 and pool in self.pools.items
        )

    def _opened_shape(self, job: Job, current: Current, pool: str) -> Shape:
        """The shape of the attempt's pods in that pool, with where its volumes and what was agreed let them go.

        A volume that has not been seen yet says nothing; the plan of an attempt that starts has it looked up.
        """
        named = volumes_of(self.world(job), job)
        for name in named:
            if name not in self.volumes:
                self._blind[name].add(job.uid)
        volumes = tuple(terms for name in named if (terms := self.volumes.get(name)))
        ceiling = agreed_ceiling(job.spec.max_price_per_node_hour, current.terms_in(pool))
        return self.shape_of(job, volumes, ceiling=ceiling)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        reserved = before is not None and before.uid in self._index.starting
        self._index.replace(before, after)
        if reserved and before is not None and before.uid not in self._index.starting:
            # What was decided while that was reserved holds no more, its own next pool above all.
            self.supply.version += 1
        self._stale.update(job.uid for job in (before, after) if job is not None)
        if after is None and before is not None:
            self._shapes.pop(before.uid, None)

    def put_volume(self, name: str, terms: Terms) -> None:
        """To which nodes the volume of that name can be attached."""
        if len(self._terms) > MAX_INTERNED:
            self._terms.clear()
        # Tens of thousands of volumes are in a few zones.
        self.volumes[name] = self._terms.setdefault(terms, terms)
        self._stale.update(self._blind.pop(name, ()))

    def drop_volume(self, name: str) -> None:
        """The volume is gone."""
        self.volumes.pop(name, None)

    def _pool_changed(self, before: Pool | None, after: Pool | None) -> None:
        self.supply.put_pool(before, after)
        if before is None or after is None:
            self._stale.update(self._index.starting)

    def _link(self, pod: Pod) -> None:
        if pod.pool:
            # It gives way to any job's pod: what it holds is free.
            self._placeholders[pod.pool][pod.uid] = pod
            return
        if pod.job_uid:
            self._by_job[pod.job_uid][pod.uid] = pod
            self._stale.add(pod.job_uid)
        if pod.claim and not pod.ended:
            self._by_claim[pod.namespace, pod.claim][pod.uid] = pod
        if pod.node and not pod.ended:
            self._by_node[pod.node][pod.uid] = pod
            self.supply.use(pod.node, _taken(pod), training=bool(pod.job_uid))

    def _unlink(self, pod: Pod, *, keep_tombstone: bool) -> None:
        if pod.pool:
            self._placeholders[pod.pool].pop(pod.uid, None)
            if not self._placeholders[pod.pool]:
                del self._placeholders[pod.pool]
            return
        if pod.job_uid:
            self._stale.add(pod.job_uid)
            mine = self._by_job[pod.job_uid]
            mine.pop(pod.uid, None)
            if keep_tombstone and self._remembered(pod):
                mine[pod.uid] = _tombstone(pod)
            elif not mine:
                del self._by_job[pod.job_uid]
        if pod.claim and not pod.ended:
            users = self._by_claim[pod.namespace, pod.claim]
            users.pop(pod.uid, None)
            if not users:
                del self._by_claim[pod.namespace, pod.claim]
        if pod.node and not pod.ended:
            self._by_node[pod.node].pop(pod.uid, None)
            if not self._by_node[pod.node]:
                del self._by_node[pod.node]
            self.supply.use(pod.node, _taken(pod), -1, training=bool(pod.job_uid))

    def _remembered(self, pod: Pod) -> bool:
        """Whether a tombstone is of use: the pod's job is still there."""
        job = self.jobs.items.get((pod.namespace, pod.job))
        return job is not None and job.uid == pod.job_uid


def _taken(pod: Pod) -> dict[str, int]:
    """What the pod takes of its node, its place among the pods included."""
    return {**pod.requests, PODS: 1}


def _tombstone(pod: Pod) -> Pod:
    return dataclasses.replace(pod, removed=True, running=False, unseen=not pod.ended)
