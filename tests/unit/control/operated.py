"""An operator in the simulated cluster: the real caches, reconciler and writes, on its own view of it."""

from typing import cast

from spot_training.cluster.client import Client
from spot_training.control.cache import Cache
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics
from spot_training.control.reconcile import Reconciler
from tests.unit.control.objects import Json
from tests.unit.control.sim import Sim

KEY = ("ns", "job")
Key = tuple[str, str]
METRICS = Metrics()
"""One for all of them: making it takes longer than looking at a job does."""
CLAIM: Json = {
    "metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"},
    "spec": {"accessModes": ["ReadWriteMany"]},
    "status": {"phase": "Bound"},
}
OTHER_CLAIM: Json = {**CLAIM, "metadata": {**CLAIM["metadata"], "name": "other", "uid": "o"}}


class Operated:
    """A process that has just been started: it knows what it has listed."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.cache = Cache()
        self.cache.pools.put(sim.pool)
        for claim in (CLAIM, OTHER_CLAIM):
            self.cache.claims.put(claim)
        self.list()
        client = cast(Client, sim)
        self.reconciler = Reconciler(
            client, self.cache, Announcer(client, "test"), lambda *_: None, METRICS, lambda: sim.now
        )

    def list(self) -> None:
        """What is there comes in; of what is there no more nobody says anything."""
        mine = () if self.sim.gone else (self.sim.job,)
        for raw in (*mine, *self.sim.others.values()):
            self.cache.jobs.put(raw)
        for raw in self.sim.claims.values():
            self.cache.claims.put(raw)
        for raw in self.sim.nodes.values():
            self.cache.nodes.put(raw)
        for raw in self.sim.pods.values():
            self.cache.put_pod(raw)

    def compare(self) -> None:
        """What the list does not have is gone, as the operator finds it now and then."""
        for name in [name for name in self.cache.nodes.items if name not in self.sim.nodes]:
            self.cache.nodes.drop(name)
        jobs = {*self.sim.others, *(() if self.sim.gone else ("job",))}
        for job in [job for job in self.cache.jobs.items.values() if job.name not in jobs]:
            self._forget(job.key, job.uid)
        claims = {CLAIM["metadata"]["name"], OTHER_CLAIM["metadata"]["name"], *self.sim.claims}
        for key in [key for key in self.cache.claims.items if key[1] not in claims]:
            self.cache.claims.drop(key)
        there = {pod["metadata"]["uid"] for pod in self.sim.pods.values()}
        for pod in [pod for pod in self.cache.pods.items.values() if pod.uid not in there]:
            self.cache.bury(pod)

    def deliver(self, count: int) -> None:
        """The watch brings the next events."""
        for kind, type_, raw in self.sim.watch[:count]:
            if kind == "pods":
                self.cache.remove_pod(raw) if type_ == "DELETED" else self.cache.put_pod(raw)
            elif type_ == "DELETED":
                self._gone(kind, raw["metadata"])
            else:
                self._take(kind, raw)
        del self.sim.watch[:count]

    def _take(self, kind: str, raw: Json) -> None:
        match kind:
            case "nodes":
                self.cache.nodes.put(raw)
            case "claims":
                self.cache.claims.put(raw)
            case "jobs":
                self.cache.jobs.put(raw)

    def _gone(self, kind: str, meta: Json) -> None:
        match kind:
            case "nodes":
                self.cache.nodes.drop(meta["name"], meta["uid"])
            case "claims":
                self.cache.claims.drop((meta["namespace"], meta["name"]), meta["uid"])
            case "jobs":
                self._forget((meta["namespace"], meta["name"]), meta["uid"])

    def _forget(self, key: Key, uid: str) -> None:
        self.cache.jobs.drop(key, uid)
        self.cache.forget_job(uid)

    async def reconcile(self, key: Key = KEY) -> float | None:
        """One pass over a job."""
        return await self.reconciler.reconcile(key)
