"""The budget is held, whoever is awake: a thousand schedules of everything that can go wrong, judged by an accountant.

The real reconciler, caches and writes run against the simulated API server; machines, kubelets and prices are the
market's. After every step, and at the end with nobody there to stop anything any more, what on-demand machines have
really cost is at most what the user allowed.
"""

import asyncio
import random
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import cast

import pytest

from spot_training.api.status import SpotTrainingJobStatus
from spot_training.cluster.client import ApiError, Client
from spot_training.control.cache import Cache
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics
from spot_training.control.policies.price import read_price_file
from spot_training.control.reconcile import Reconciler
from tests.unit.control.accountant import spent
from tests.unit.control.market import GPU, Market
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.sim import Crash

SCHEDULES = 1000
BATCHES = 10
STEPS = 30
KEY = ("ns", "job")
NAMES = ["a1", "a2", "b1", "b2", "b3"]


class Schedule:
    """One job, its operator and its market, and what chance does to them."""

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.chance = random.Random(seed)
        self.loop = loop
        self.cap = Fraction(self.chance.choice(["0.05", "0.30", "0.50", "1.00", "3.00"]))
        self.market = Market(self.job(), self.chance, NAMES[:2], NAMES[2:])
        self.highest = self.cap
        # Where images are large, a pod is long on its machine before anything starts.
        self.speed = self.chance.choice([0.9, 0.1])
        self.log: list[str] = [f"seed {seed}, cap {float(self.cap)}"]
        self.restart()
        self.apart = False
        if self.chance.random() < (0.3 if "ranks" in self.market.job["spec"]["onDemand"] else 0.95):
            for name in NAMES[:2]:
                self.market.mark(name, self.market.now + 30)

    def job(self) -> Json:
        made = raw_job()
        spec = made["spec"]
        spec["replicas"] = self.chance.choice([1, 1, 2, 3])
        spec["pools"] = self.chance.choice([[], ["a", "b"], ["b", "a"], ["c"], ["a", "c"], ["a", "c", "b"]])
        spec["checkpoint"]["writer"] = self.chance.choice(["Library", "Other"])
        spec["onDemand"] = {
            "policy": "WhenNoSpot",
            "afterSeconds": self.chance.choice([0, 0, 60]),
            "maxCost": f"{float(self.cap):.2f}",
        }
        spec["recovery"] = {"maxFailures": 1000, "backoff": {"initialSeconds": 1, "maxSeconds": 1}}
        spec["provisionTimeoutSeconds"] = self.chance.choice([60, 900])
        container = spec["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {GPU: self.chance.choice([4, 4, 2])}}
        if self.chance.random() < 0.3:
            spec["template"]["spec"]["terminationGracePeriodSeconds"] = self.chance.choice([5, 120])
        if self.chance.random() < 0.1:
            spec["template"]["spec"]["activeDeadlineSeconds"] = 100
        if spec["replicas"] > 1 and self.chance.random() < 0.4:
            # Apart from the others as long as there is money; with Never, nothing but these is ever on demand.
            spec["onDemand"]["ranks"] = [self.chance.randrange(spec["replicas"])]
            spec["onDemand"]["policy"] = self.chance.choice(["Never", "WhenNoSpot"])
        return made

    # The operator

    def restart(self) -> None:
        """A new operator, that knows what it lists."""
        market = self.market
        market.lose, market.before_write = 0, lambda: None
        market.watch.clear()
        self.cache = Cache()
        self.cache.jobs.put(market.job)
        for raw in market.pools.values():
            self.cache.pools.put(raw)
        claim = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"}}
        self.cache.claims.put(
            claim | {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}}
        )
        for raw in market.nodes.values():
            self.cache.nodes.put(raw)
        for raw in market.pods.values():
            self.cache.put_pod(raw)
        self.cache.prices, _ = read_price_file(market.price_file)
        client = cast(Client, market)
        self.reconciler = Reconciler(
            client, self.cache, Announcer(client, "test"), lambda *_: None, Metrics(), lambda: market.now
        )

    def hear(self, pods: bool = True) -> None:
        """The watches bring what has happened; those of pods may lag."""
        later = []
        for kind, type_, raw in self.market.watch:
            if kind == "pods" and not pods:
                later.append((kind, type_, raw))
            elif kind == "pods":
                self.cache.remove_pod(raw) if type_ == "DELETED" else self.cache.put_pod(raw)
            elif kind == "nodes" and type_ == "DELETED":
                self.cache.nodes.drop(raw["metadata"]["name"], raw["metadata"]["uid"])
            elif kind == "jobs":
                self.cache.jobs.put(raw)
            else:
                (self.cache.nodes if kind == "nodes" else self.cache.pools).put(raw)
        self.market.watch[:] = later
        self.cache.prices, _ = read_price_file(self.market.price_file)

    def look(self, pods: bool = True) -> None:
        self.hear(pods)
        with suppress(TimeoutError):
            try:
                self.loop.run_until_complete(self.reconciler.reconcile(KEY))
            except (ApiError, RuntimeError) as error:
                raise AssertionError(f"the pass failed: {error!r}\n{self.story()}") from error
        self.market.lose = 0

    # What happens

    def step(self) -> None:
        things = [
            (self.the_operator_works, 10),
            (self.pods_get_on, 10),
            (self.the_autoscaler_works, 8),
            (self.the_operator_lags, 2),
            (self.the_operator_dies, 2),
            (self.answers_are_lost, 1),
            (self.the_operator_is_away, 3),
            (self.time_passes, 4),
            (self.a_program_ends, 1),
            (self.somebody_deletes_a_pod, 1),
            (self.a_pod_vanishes, 2),
            (self.a_machine_fails, 2),
            (self.a_machine_comes_back, 2),
            (self.a_machine_is_to_be_taken, 1),
            (self.a_price_changes, 3),
            (self.spot_comes_and_goes, 2),
            (self.the_user_changes_the_budget, 1),
            (self.the_user_suspends, 1),
        ]
        what = self.chance.choices([each for each, _ in things], [weight for _, weight in things])[0]
        self.log.append(f"{self.market.now - 1_900_000_000.0:.0f}: {what.__name__}")
        what()
        self.check()

    def the_operator_works(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self.look()
            self.pods_get_on()
            self.advance(self.chance.uniform(0.1, 5.0))
            self.kubelets_tidy_up()

    def the_operator_lags(self) -> None:
        self.look(pods=False)

    def the_operator_dies(self) -> None:
        left = self.chance.randint(0, 4)

        def kill() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash

        self.market.before_write = kill
        with suppress(Crash):
            self.look()
        self.restart()

    def answers_are_lost(self) -> None:
        self.market.lose = self.chance.randint(1, 2)
        self.look()

    def the_operator_is_away(self) -> None:
        for _ in range(3):
            self.advance(self.chance.choice([20.0, 200.0, 2000.0]))
            self.pods_get_on()
            self.kubelets_tidy_up()
            self.market.autoscale()
            for what in (self.a_pod_vanishes, self.a_machine_fails):
                if self.chance.random() < 0.2:
                    what()
        self.restart()

    def time_passes(self) -> None:
        self.advance(self.chance.choice([0.7, 5.3, 40.0, 130.0]))

    def advance(self, seconds: float) -> None:
        self.market.advance(seconds)
        for name, state in self.market.machine.items():
            silent = self.market.now - self.market.leases[name] > 40
            if state != "up" and silent and self.market.ready(name) == "True":
                self.market.set_ready(name, "Unknown")

    def pods_get_on(self) -> None:
        for pod in list(self.market.pods.values()):
            if not pod["spec"].get("nodeName"):
                if self.chance.random() < 0.8:
                    self.market.bind(pod)
            elif (
                self.market.machine[pod["spec"]["nodeName"]] == "up"
                and "deletionTimestamp" not in pod["metadata"]
                and pod["status"]["phase"] == "Pending"
                and "startTime" in pod["status"]
                and self.chance.random() < self.speed
            ):
                self.market.start(pod)

    def kubelets_tidy_up(self) -> None:
        """Deleted pods whose containers have ended go."""
        for pod in list(self.market.pods.values()):
            usage = self.market.usages.get(pod["metadata"]["uid"])
            over = usage is None or usage.until is not None
            if "deletionTimestamp" in pod["metadata"] and over and self.chance.random() < 0.7:
                name = pod["spec"]["nodeName"]
                if self.market.machine[name] == "up":
                    self.market.remove(pod)

    def the_autoscaler_works(self) -> None:
        self.market.autoscale()
        self.pods_get_on()

    def running(self) -> Json | None:
        found = [
            pod
            for pod in self.market.pods.values()
            if pod["status"]["phase"] == "Running" and self.market.machine[pod["spec"]["nodeName"]] == "up"
        ]
        return self.chance.choice(found) if found else None

    def a_program_ends(self) -> None:
        pod = self.running()
        if pod is not None:
            done = self.chance.random() < 0.1
            self.market.end(pod, 0 if done else 1, "", '{"reason":"Completed"}' if done else "")

    def somebody_deletes_a_pod(self) -> None:
        if self.market.pods:
            self.market.delete_pod(self.chance.choice(list(self.market.pods.values())))

    def a_pod_vanishes(self) -> None:
        if self.market.pods:
            self.market.remove(self.chance.choice(list(self.market.pods.values())))

    def a_machine_fails(self) -> None:
        name = self.chance.choice(sorted(self.market.nodes))
        match self.chance.choice(["dies", "is cut off", "is replaced"]):
            case "is replaced":
                self.market.replace(name)
            case "dies" if self.market.machine[name] == "up":
                self.market.power_off(name)
            case "is cut off" if self.market.machine[name] == "up":
                self.market.cut(name)

    def a_machine_comes_back(self) -> None:
        for name in self.market.nodes:
            if self.market.machine[name] != "up" and self.chance.random() < 0.7:
                self.market.restore(name)

    def a_machine_is_to_be_taken(self) -> None:
        name = self.chance.choice(sorted(self.market.nodes))
        if self.market.nodes[name]["spec"].get("unschedulable"):
            self.market.unmark(name)
        else:
            self.market.mark(name, self.market.now + self.chance.choice([30, 3000]))

    def a_price_changes(self) -> None:
        price, pool = self.chance.choice(["2.00", "4.00", "6.50", "9.00"]), self.chance.choice("bbc")
        if any(self.market.unstarted(each) for each in "bc"):
            # The exception that the documentation names: a price that rises before a pod that is made has started.
            return
        match self.chance.choice(["node", "node", "pool", "file"]):
            case "node":
                said = self.chance.choice([price, None])
                self.market.change_node_price(self.chance.choice(sorted(self.market.nodes)), said)
            case "pool":
                self.market.change_pool_price(pool, price)
            case "file":
                self.market.price_file = self.chance.choice([{}, {pool: price}, {"a": "1.50", pool: "cheap"}])
        if "cheap" in self.market.price_file.values():
            # The market knows nothing of words.
            self.market.price_file = {"a": "1.50"}

    def spot_comes_and_goes(self) -> None:
        for name in NAMES[:2]:
            if self.chance.random() < 0.6:
                self.market.mark(name, self.market.now + 30)
            else:
                self.market.unmark(name)

    def the_user_changes_the_budget(self) -> None:
        self.cap = Fraction(self.chance.choice(["0.30", "1.00", "4.00"]))
        self.highest = max(self.highest, self.cap)
        wanted = self.market.job["spec"]["onDemand"] | {"maxCost": f"{float(self.cap):.2f}"}
        self.market.edit_job(onDemand=wanted)

    def the_user_suspends(self) -> None:
        self.market.edit_job(suspend=not self.market.job["spec"].get("suspend", False))

    # What must always hold

    def check(self) -> None:
        real = spent(self.market.usages.values(), "bc", self.market.now)
        assert real <= self.highest, f"{float(real)} of {float(self.highest)}\n{self.story()}"
        current = self.market.job.get("status", {}).get("current") or {}
        if "onDemand" in current:
            self.apart = True
            machines = {each["index"]: each["name"][0] for each in current.get("nodes", ())}
            ranks = current["onDemand"]["ranks"]
            assert all((index in ranks) == (pool in "bc") for index, pool in machines.items()), self.story()

    @property
    def status(self) -> SpotTrainingJobStatus:
        return SpotTrainingJobStatus.model_validate(self.market.job.get("status") or {})

    def story(self) -> str:
        return "\n".join([*self.log[:1], *self.log[-45:], self.status.model_dump_json(exclude_none=True)])

    def run(self) -> "Schedule":
        for _ in range(STEPS):
            self.step()
        # Nobody will come any more; what is left ends by itself.
        self.log.append("the operator never comes back")
        for name in self.market.nodes:
            self.market.unmark(name)
        for _ in range(10):
            self.advance(3000)
            self.check()
            self.pods_get_on()
            self.market.autoscale()
        return self


@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_on_demand_machines_cost_is_never_more_than_was_allowed(batch: int) -> None:
    loop = asyncio.new_event_loop()
    size = SCHEDULES // BATCHES
    used, brought, exhausted, apart = 0, 0, 0, 0
    try:
        for seed in range(batch * size, (batch + 1) * size):
            made = Schedule(seed, loop).run()
            used += spent(made.market.usages.values(), "bc", made.market.now) > 0
            brought += spent(made.market.usages.values(), "c", made.market.now) > 0
            apart += made.apart
            exhausted += any(each.type == "BudgetExhausted" for each in made.status.conditions)
            if made.status.cost is not None:
                assert Decimal(made.status.cost.spent) >= 0
    finally:
        loop.close()
    # The proof is one only where there was something to hold.
    assert used > size / 3, f"on-demand machines were used in {used} of {size}"
    assert brought > size / 10, f"machines that an autoscaler brought were used in {brought} of {size}"
    assert exhausted > size / 10, f"the budget was used up in {exhausted} of {size}"
    assert apart > size / 20, f"ranks were on on-demand machines beside spot ones in {apart} of {size}"


def test_a_pod_that_was_on_a_machine_is_not_made_again_beside_one_that_may_run_on() -> None:
    loop = asyncio.new_event_loop()
    try:
        made = Schedule(0, loop)
        made.cap = made.highest = Fraction(1)
        made.market.job["spec"] |= {
            "replicas": 1,
            "pools": ["b"],
            "onDemand": {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "1.00"},
        }
        made.restart()
        made.look()
        (pod,) = made.market.pods.values()
        made.market.bind(pod)
        made.look()
        made.market.cut(pod["spec"]["nodeName"])
        made.market.remove(pod)
        for _ in range(200):
            made.look()
            made.pods_get_on()
            made.advance(10)
            made.check()
        assert made.status.disruptions == 1
        assert len(made.market.usages) == 1, "all of the money is held for the one that runs on"
    finally:
        loop.close()


def test_a_pod_that_is_made_again_shares_its_time_with_the_one_before_it() -> None:
    loop = asyncio.new_event_loop()
    try:
        made = Schedule(0, loop)
        made.cap = made.highest = Fraction(1)
        made.market.job["spec"] |= {
            "replicas": 1,
            "pools": ["b"],
            "onDemand": {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "1.00"},
        }
        made.restart()
        for _ in range(3):
            # It comes, runs and is taken away while no operator is there.
            made.look()
            (pod,) = made.market.pods.values()
            made.market.bind(pod)
            made.advance(200)
            made.market.remove(pod)
            made.restart()
        made.look()
        (pod,) = made.market.pods.values()
        made.market.bind(pod)
        made.market.start(pod)
        made.advance(10_000)
        made.check()
        ran = [each.until - each.since for each in made.market.usages.values() if each.until is not None]
        assert len(ran) == 4, "each is another pod of the same attempt"
        assert 600 < sum(ran) <= 900
    finally:
        loop.close()


@pytest.mark.parametrize("away", [False, True])
def test_a_price_that_rises_while_a_pod_is_on_its_way(away: bool) -> None:
    """The operator sees what it starts at, and stops in time; while it is away, the pod runs as was reckoned."""
    loop = asyncio.new_event_loop()
    try:
        made = Schedule(0, loop)
        made.cap = Fraction(1)
        made.highest = Fraction(2) if away else made.cap
        made.market.job["spec"] |= {
            "replicas": 1,
            "pools": ["b"],
            "onDemand": {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "1.00"},
        }
        made.restart()
        made.look()
        (pod,) = made.market.pods.values()
        made.market.change_pool_price("b", "8.00")
        made.market.bind(pod)
        made.market.start(pod)
        for _ in range(500):
            if not away:
                made.look()
                made.kubelets_tidy_up()
            made.advance(10)
            made.check()
        real = spent(made.market.usages.values(), "bc", made.market.now)
        assert real > (1 if away else Fraction(1, 2)), float(real)
    finally:
        loop.close()


def test_an_autoscaler_may_bring_smaller_machines_than_there_are() -> None:
    loop = asyncio.new_event_loop()
    try:
        made = Schedule(0, loop)
        made.cap = made.highest = Fraction(1)
        made.market.job["spec"] |= {
            "replicas": 1,
            "pools": ["c"],
            "onDemand": {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "1.00"},
        }
        container = made.market.job["spec"]["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {GPU: 2}}
        made.market.sizes |= {"c1": 8, "c2": 4}
        made.market.add_machine("c1")
        made.restart()
        made.look()
        (pod,) = made.market.pods.values()
        made.market.mark("c1", made.market.now + 30)
        made.market.add_machine("c2")
        made.market.bind(pod)
        made.market.start(pod)
        made.advance(10_000)
        made.check()
        assert spent(made.market.usages.values(), "c", made.market.now) > 0
    finally:
        loop.close()
