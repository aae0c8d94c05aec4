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
CLAIM: Json = {
    "metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"},
    "spec": {"accessModes": ["ReadWriteMany"]},
    "status": {"phase": "Bound"},
}


class Operated:
    """A process that has just been started: it knows what it has listed."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.cache = Cache()
        self.cache.jobs.put(sim.job)
        self.cache.pools.put(sim.pool)
        self.cache.claims.put(CLAIM)
        self.list()
        client = cast(Client, sim)
        self.reconciler = Reconciler(
            client, self.cache, Announcer(client, "test"), lambda *_: None, Metrics(), lambda: sim.now
        )

    def list(self) -> None:
        """What is there comes in; of what is there no more nobody says anything."""
        self.cache.jobs.put(self.sim.job)
        for raw in self.sim.nodes.values():
            self.cache.nodes.put(raw)
        for raw in self.sim.pods.values():
            self.cache.put_pod(raw)

    def compare(self) -> None:
        """What the list does not have is gone, as the operator finds it now and then."""
        for name in [name for name in self.cache.nodes.items if name not in self.sim.nodes]:
            self.cache.nodes.drop(name)
        there = {pod["metadata"]["uid"] for pod in self.sim.pods.values()}
        for pod in [pod for pod in self.cache.pods.items.values() if pod.uid not in there]:
            self.cache.bury(pod)

    def deliver(self, count: int) -> None:
        """The watch brings the next events."""
        for kind, type_, raw in self.sim.watch[:count]:
            if kind == "pods":
                self.cache.remove_pod(raw) if type_ == "DELETED" else self.cache.put_pod(raw)
            elif kind == "nodes" and type_ == "DELETED":
                self.cache.nodes.drop(raw["metadata"]["name"], raw["metadata"]["uid"])
            else:
                (self.cache.jobs if kind == "jobs" else self.cache.nodes).put(raw)
        del self.sim.watch[:count]

    async def reconcile(self) -> float | None:
        """One pass."""
        return await self.reconciler.reconcile(KEY)
