"""A cluster in memory in which machines cost money: kubelets keep deadlines by themselves, prices change, and what
really ran, from when to when and for how much, is written down as it happens.
"""

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spot_training.api.times import format_second, parse_time
from tests.unit.control.objects import Json, raw_pool
from tests.unit.control.sim import Sim

GPU = "nvidia.com/gpu"


@dataclass
class Usage:
    """A pod on a machine: its pool, its price and GPUs when its kubelet took the pod in, since when, and when nothing
    of it ran any more.
    """

    pod: str
    node: str
    pool: str
    price: Fraction
    gpus: int
    of: int
    since: float
    until: float | None = None


class Market(Sim):
    """A spot pool ``a``, an on-demand pool ``b``, and one, ``c``, whose machines an autoscaler brings. They are of two
    sizes. The rest of what happens is up to ``chance``.
    """

    def __init__(self, job: Json, chance: random.Random, spot: list[str], on_demand: list[str]) -> None:
        self.chance = chance
        self.pools = {
            "a": raw_pool("a", noticeSeconds=60, pricePerNodeHour="1.00", onDemandPricePerNodeHour="4.00"),
            "b": raw_pool("b", noticeSeconds=60, capacityType="OnDemand", pricePerNodeHour="4.00"),
            "c": raw_pool(
                "c",
                noticeSeconds=60,
                capacityType="OnDemand",
                pricePerNodeHour="5.00",
                provisioning="Autoscaled",
            ),
        }
        self.price_file: dict[str, str] = {}
        self.usages: dict[str, Usage] = {}
        self.ends: dict[str, tuple[float, str]] = {}
        self.sizes: dict[str, int] = {}
        self._brought = 0
        super().__init__(job, self.pools["a"], [*spot, *on_demand])

    def pool_of(self, node: str) -> str:
        return node[0]

    def price_of(self, node: str) -> Fraction:
        """What the machine costs for an hour now."""
        own = self.nodes[node]["metadata"].get("annotations", {}).get("spot.training/price-per-node-hour")
        pool = self.pool_of(node)
        said = own or self.price_file.get(pool) or self.pools[pool]["spec"]["pricePerNodeHour"]
        return Fraction(said)

    def add_machine(self, name: str) -> None:
        super().add_machine(name)
        self.nodes[name]["metadata"]["labels"] = {"pool": self.pool_of(name)}
        self.nodes[name]["status"]["allocatable"][GPU] = str(self.size(name))
        self._tell("nodes", "MODIFIED", self.nodes[name])

    def size(self, name: str) -> int:
        """GPUs of the machine."""
        return self.sizes.setdefault(name, self.chance.choice([4, 8]))

    def autoscale(self) -> None:
        """The autoscaler brings a machine for a pod that has none, and takes away one that nobody uses."""
        for name in [name for name in self.nodes if self.pool_of(name) == "c"]:
            used = any(each.node == name and each.until is None for each in self.usages.values())
            if not used and not self.on(name) and self.machine[name] == "up" and self.chance.random() < 0.5:
                self._tell("nodes", "DELETED", self.nodes.pop(name))
                del self.machine[name], self.leases[name]
        for pod in self.pods.values():
            if not pod["spec"].get("nodeName") and _pool(pod) == "c" and self.chance.random() < 0.7:
                self._brought += 1
                self.add_machine(f"c{self._brought}")

    def unstarted(self, pool: str) -> list[Json]:
        """Pods of the pool that no kubelet has taken in yet."""
        every = [pod for pod in self.pods.values() if _pool(pod) == pool]
        return [pod for pod in every if pod["metadata"]["uid"] not in self.usages]

    def change_node_price(self, name: str, price: str | None) -> None:
        annotations = self.nodes[name]["metadata"].setdefault("annotations", {})
        annotations.pop("spot.training/price-per-node-hour", None)
        if price is not None:
            annotations["spot.training/price-per-node-hour"] = price
        self._tell("nodes", "MODIFIED", self.nodes[name])

    def change_pool_price(self, name: str, price: str) -> None:
        self.pools[name]["spec"]["pricePerNodeHour"] = price
        self._tell("pools", "MODIFIED", self.pools[name])

    # Scheduler and kubelets

    def bind(self, pod: Json) -> None:
        """The scheduler puts the pod on a machine that it may use, and whose kubelet takes it in at once."""
        off = {
            value
            for term in _terms(pod)
            for field in term.get("matchFields", ())
            for value in field["values"]
        }
        for name in self.chance.sample(sorted(self.nodes), len(self.nodes)):
            raw = self.nodes[name]
            taken = sum(
                _gpus(each) for each in self.on(name) if each["status"]["phase"] in ("Pending", "Running")
            )
            fits = taken + _gpus(pod) <= self.size(name) and raw["metadata"]["labels"]["pool"] == _pool(pod)
            if not fits or name in off or raw["spec"].get("unschedulable") or self.ready(name) != "True":
                continue
            pod["spec"]["nodeName"] = name
            if self.machine[name] == "up":
                self.accept(pod)
            self._tell("pods", "MODIFIED", pod)
            return

    def accept(self, pod: Json) -> None:
        uid, name = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        pod["status"]["startTime"] = format_second(self.now)
        self.usages[uid] = Usage(
            uid, name, self.pool_of(name), self.price_of(name), _gpus(pod), self.size(name), self.now
        )
        limit = pod["spec"].get("activeDeadlineSeconds")
        if limit is not None:
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            self.ends[uid] = (self.now + limit + self.chance.uniform(0.0, grace + 5.0), "DeadlineExceeded")

    def delete_pod(self, pod: Json, grace: int | None = None) -> Json:
        uid = pod["metadata"]["uid"]
        made = super().delete_pod(pod, grace)
        usage = self.usages.get(uid)
        if usage is not None and usage.until is None and self.machine[usage.node] == "up":
            seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
            at = self.now + self.chance.uniform(0.0, seconds + 2.0)
            if uid not in self.ends or at < self.ends[uid][0]:
                self.ends[uid] = (at, "")
        return made

    def advance(self, seconds: float) -> None:
        """Time passes; what was to end meanwhile has ended when it was to."""
        self.now += seconds
        for uid, (at, reason) in list(self.ends.items()):
            if at <= self.now:
                self.finish(uid, at)
                pod = self.pod(uid)
                if pod is not None and self.machine[pod["spec"]["nodeName"]] == "up":
                    self.report(pod, at, reason)
        self.renew()

    def pod(self, uid: str) -> Json | None:
        return next((pod for pod in self.pods.values() if pod["metadata"]["uid"] == uid), None)

    def finish(self, uid: str, at: float) -> None:
        """Nothing of the pod runs any more."""
        usage = self.usages.get(uid)
        if usage is not None and usage.until is None:
            usage.until = max(at, usage.since)

    def report(self, pod: Json, at: float, reason: str, code: int = 143, message: str = "") -> None:
        """Kubelet tells of the pod's end."""
        uid = pod["metadata"]["uid"]
        self.ends.pop(uid, None)
        started = pod["status"].get("containerStatuses")
        state = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "finishedAt": format_second(at),
            "startedAt": started[0]["state"]["running"]["startedAt"] if started else None,
            "message": message,
        }
        if reason:
            pod["status"]["reason"] = reason
        self._state(pod, "Failed" if code or reason else "Succeeded", {"terminated": state})
        self.containers.pop(uid, None)

    def start(self, pod: Json) -> None:
        self.containers[pod["metadata"]["uid"]] = pod["metadata"]["name"]
        self._state(pod, "Running", {"running": {"startedAt": format_second(self.now)}})

    def end(self, pod: Json, code: int, reason: str, message: str = "") -> None:
        self.finish(pod["metadata"]["uid"], self.now)
        self.report(pod, self.now, "", code, message)

    def remove(self, pod: Json) -> Json:
        """The object is gone; its kubelet, if it hears of it, ends what ran."""
        name = pod["spec"].get("nodeName")
        if name and self.machine[name] == "up":
            self.finish(pod["metadata"]["uid"], self.now)
            self.ends.pop(pod["metadata"]["uid"], None)
        return super().remove(pod)

    def power_off(self, name: str) -> None:
        super().power_off(name)
        for uid, usage in self.usages.items():
            if usage.node == name:
                self.finish(uid, self.now)
                self.ends.pop(uid, None)

    def restore(self, name: str) -> None:
        if self.machine[name] == "cut":
            for pod in self.on(name):
                usage = self.usages.get(pod["metadata"]["uid"])
                if (
                    usage is not None
                    and usage.until is not None
                    and pod["status"]["phase"] in ("Pending", "Running")
                ):
                    self.report(pod, usage.until, "DeadlineExceeded")
            here = {pod["metadata"]["uid"] for pod in self.on(name)}
            for uid, usage in self.usages.items():
                if usage.node == name and uid not in here:
                    self.finish(uid, self.now)
        super().restore(name)
        for pod in self.on(name):
            if pod["metadata"]["uid"] not in self.usages and pod["status"]["phase"] == "Pending":
                self.accept(pod)
                self._tell("pods", "MODIFIED", pod)
            elif "deletionTimestamp" in pod["metadata"]:
                self.delete_pod(pod, max(1, int(parse_time(pod["metadata"]["deletionTimestamp"]) - self.now)))


def _terms(pod: Json) -> list[Json]:
    affinity: Json = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    found: list[Json] = required.get("nodeSelectorTerms", [])
    return found


def _pool(pod: Json) -> str:
    return str(pod["spec"]["nodeSelector"]["pool"])


def _gpus(pod: Json) -> int:
    limits: dict[str, Any] = pod["spec"]["containers"][0]["resources"]["limits"]
    return int(limits[GPU])
