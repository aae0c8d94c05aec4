"""The watches against a small API server: what they do not tell, what must not be written, and not be multiplied."""

import asyncio
import copy
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from spot_training.api.times import format_time
from spot_training.cluster.client import Client
from spot_training.control import follow
from spot_training.control.dispatch import BURST, INTERVAL_SECONDS
from spot_training.control.handlers import watch
from spot_training.control.metrics import Metrics
from spot_training.control.operator import Operator
from tests.unit.control.objects import Json, raw_job, raw_node
from tests.unit.control.server import Server, serving

RUNNING = {
    "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": "2026-04-08T05:00:03Z"}}}]
}


def unnumbered(raw: Json) -> Json:
    """The object as one that the server has not seen yet."""
    made = copy.deepcopy(raw)
    made["metadata"].pop("resourceVersion")
    return made


class Cluster:
    """The server, and an operator that watches it through kopf."""

    def __init__(self, server: Server, operator: Operator) -> None:
        self.server, self.operator = server, operator

    def job(self, name: str = "job") -> Json:
        return self.server.get("spottrainingjobs", name, "ns")

    def status(self) -> Json:
        found: Json = self.job().get("status") or {}
        return found

    def edit(self, **spec: Any) -> None:
        raw = copy.deepcopy(self.job())
        raw["spec"] |= spec
        raw["metadata"]["generation"] += 1
        self.server.put("spottrainingjobs", raw)

    def pods(self) -> list[str]:
        return sorted(name for _, name in self.server.objects["pods"])

    def run_pods(self) -> None:
        """The scheduler and the kubelets: each pod runs, on the node of its index."""
        for raw in list(self.server.objects["pods"].values()):
            if raw["status"]["phase"] == "Pending":
                node = f"a{int(raw['metadata']['labels']['spot.training/index']) + 1}"
                status = {"phase": "Running", **RUNNING}
                self.server.put("pods", raw | {"spec": raw["spec"] | {"nodeName": node}, "status": status})

    async def until(self, what: str, happened: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(30):
                while not happened():  # noqa: ASYNC110 - any condition, not an event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            seen = (self.status(), self.pods(), sorted(self.operator.cache.nodes.items), self.server.watches)
            raise AssertionError(f"{what}: did not come; seen last: {seen}") from None

    async def started(self) -> None:
        """The job's first attempt runs."""
        await self.until("all pods made", lambda: len(self.pods()) == self.job()["spec"]["replicas"])
        self.run_pods()
        await self.until("the job runs", lambda: bool(self.status().get("phase") == "Running"))

    def passes(self) -> float:
        """How often the operator has looked at a job."""
        return self.operator.metrics.registry.get_sample_value("spot_operator_reconcile_seconds_count") or 0.0

    def lose(self, *gone: tuple[str, str, str]) -> None:
        """The watches break, these go, and the server forgets that they did: all before anybody can see it."""
        self.server.break_watches()
        for kind, namespace, name in gone:
            self.server.remove(kind, name, namespace)
        self.server.compact()


@asynccontextmanager
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int = 1) -> AsyncIterator[Cluster]:
    """A pool of three nodes, a job of two pods, and an operator that has listed them and stands by."""
    async with serving() as server, Client(server.connection) as client:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        for name in ("a1", "a2", "a3"):
            server.put("nodes", unnumbered(raw_node(name)))
        server.put("spotpools", {"metadata": {"name": "a"}, "spec": {"nodeSelector": {"pool": "a"}}})
        for number in range(jobs):
            name = f"job-{number}" if number else "job"
            metadata = {"name": f"{name}-claim", "namespace": "ns"}
            claim = {"metadata": metadata, "spec": {"accessModes": ["ReadWriteMany"]}}
            server.put("persistentvolumeclaims", claim)
            raw = unnumbered(raw_job(name, f"j-{number}"))
            raw["spec"]["checkpoint"]["claimName"] = f"{name}-claim"
            raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 4}}
            raw["spec"]["checkpoint"]["writer"] = "Library"
            server.put("spottrainingjobs", raw)
        operator = Operator(client, Metrics())
        operator.rest()
        watching = asyncio.create_task(watch(operator, None, asyncio.Event(), lambda: None))
        following = asyncio.create_task(operator.follower.run())
        try:
            made = Cluster(server, operator)
            async with asyncio.timeout(30):
                await operator.follower.listed.wait()
            cache = operator.cache
            await made.until("all seen", lambda: len(cache.jobs.items) == jobs and bool(cache.pools.items))
            yield made
        finally:
            for each in (following, watching):
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each


@pytest.fixture
async def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    async with watched(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def cluster(standby: Cluster) -> AsyncIterator[Cluster]:
    """The operator leads."""
    leading = asyncio.create_task(standby.operator.lead())
    yield standby
    leading.cancel()
    with suppress(asyncio.CancelledError):
        await leading


async def test_what_went_while_a_watch_was_expired_is_found_gone(cluster: Cluster) -> None:
    """410, and a list in which the node and the pod on it are missing: no event ever says that they went."""
    await cluster.started()
    lost = cluster.pods()[1]
    cluster.lose(("nodes", "", "a2"), ("pods", "ns", lost))
    await cluster.until("the ghost gone", lambda: "a2" not in cluster.operator.cache.nodes.items)
    assert {("nodes", True), ("pods", True)} <= set(cluster.server.watches)
    await cluster.until("a disruption", lambda: bool(cluster.status().get("disruptions") == 1))
    assert cluster.status()["failures"] == 0


async def test_a_job_that_went_while_kopfs_watch_was_expired_is_found_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the kind is listed anew, and that says that something may have gone."""
    async with watched(tmp_path, monkeypatch, jobs=2) as cluster:
        cluster.lose(("spottrainingjobs", "ns", "job-1"))
        jobs = cluster.operator.cache.jobs.items
        await cluster.until("the ghost gone", lambda: list(jobs) == [("ns", "job")])
        assert ("spottrainingjobs", True) in cluster.server.watches


async def test_that_all_jobs_and_pools_went_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to be listed, and kopf has nothing to tell."""
    monkeypatch.setattr(follow, "COUNT_SECONDS", 0.05)
    async with watched(tmp_path, monkeypatch) as cluster:
        cluster.lose(("spottrainingjobs", "ns", "job"), ("spotpools", "", "a"))
        cache = cluster.operator.cache
        await cluster.until("the ghosts gone", lambda: not cache.jobs.items and not cache.pools.items)


async def test_a_watch_that_only_lost_its_connection_goes_on_where_it_was(cluster: Cluster) -> None:
    await cluster.started()
    cluster.server.break_watches()
    cluster.server.remove("nodes", "a3")
    await cluster.until("the node gone", lambda: "a3" not in cluster.operator.cache.nodes.items)
    assert ("nodes", True) not in cluster.server.watches, "nothing was listed anew"
    assert len(cluster.operator.follower._lists) == 0


async def test_a_standby_sees_everything_and_writes_nothing_and_then_acts_on_all_of_it(
    standby: Cluster,
) -> None:
    standby.edit(suspend=True)
    await standby.until("seen", lambda: standby.operator.cache.jobs.items["ns", "job"].spec.suspend)
    standby.edit(suspend=False)
    standby.server.remove("nodes", "a3")
    await standby.until("seen", lambda: "a3" not in standby.operator.cache.nodes.items)
    assert standby.server.writes == []
    leading = asyncio.create_task(standby.operator.lead())
    await standby.started()
    leading.cancel()
    with suppress(asyncio.CancelledError):
        await leading
    # It stands by again: what comes sets nothing in motion.
    written = len(standby.server.writes)
    standby.edit(suspend=True)
    await standby.until("seen", lambda: standby.operator.cache.jobs.items["ns", "job"].spec.suspend)
    assert len(standby.server.writes) == written
    assert len(standby.operator.jobs) == 0


async def test_a_new_leader_does_not_give_away_what_the_former_gave_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its watch lags: the former leader has opened an attempt on two of three nodes that it has not heard of."""
    async with watched(tmp_path, monkeypatch, jobs=2) as cluster:
        cluster.server.lagging = True
        raw = copy.deepcopy(cluster.job("job-1"))
        opened = {"attempt": 1, "pool": "a", "openedAt": format_time(time.time())}
        raw["status"] = {"phase": "Starting", "current": opened}
        cluster.server.put("spottrainingjobs", raw)
        leading = asyncio.create_task(cluster.operator.lead())
        await cluster.until("its pods made", lambda: cluster.pods() == ["job-1-1-0", "job-1-1-1"])
        await cluster.until("a word about the other", lambda: "conditions" in cluster.status())
        assert "current" not in cluster.status()
        capacity = [each for each in cluster.status()["conditions"] if each["type"] == "CapacityAvailable"]
        assert [each["status"] for each in capacity] == ["False"], capacity
        leading.cancel()
        with suppress(asyncio.CancelledError):
            await leading


OURS = re.compile(
    r"PATCH /apis/spot.training/v1alpha1/(namespaces/ns/spottrainingjobs/job|spotpools/a)/status"
    r"|POST /api/v1/namespaces/ns/(pods|services|events)"
    r"|DELETE /api/v1/namespaces/ns/pods/job-\d+-\d"
)


async def test_nothing_is_ever_written_on_what_is_watched_but_status(cluster: Cluster) -> None:
    """No finalizer, no annotation of kopf's, no second copy of the spec; a stopped operator is in nobody's way."""
    await cluster.started()
    node = copy.deepcopy(cluster.server.get("nodes", "a1"))
    node["metadata"]["annotations"] = {
        "spot.training/notice-id": "n",
        "spot.training/reclaim-deadline": "2126-01-01T00:00:00Z",
    }
    node["spec"] |= {
        "unschedulable": True,
        "taints": [{"key": "spot.training/reclaim", "value": "terminate", "effect": "NoSchedule"}],
    }
    cluster.server.put("nodes", node)
    await cluster.until("a second attempt", lambda: bool(cluster.status()["current"]["attempt"] == 2))
    wrong = [
        (method, path) for method, path, _ in cluster.server.writes if not OURS.fullmatch(f"{method} {path}")
    ]
    assert not wrong
    patches = [body for method, _, body in cluster.server.writes if method == "PATCH"]
    assert {"status"} == {key for each in patches for key in each.keys() - {"apiVersion", "kind", "metadata"}}
    assert all(each["metadata"].keys() == {"resourceVersion"} for each in patches)
    for kind in ("spottrainingjobs", "spotpools", "nodes", "persistentvolumeclaims", "pods"):
        for raw in cluster.server.objects[kind].values():
            assert "finalizers" not in raw["metadata"], raw
            assert "kopf" not in str(raw), raw
    assert "kopf" not in cluster.status()


async def test_a_storm_of_events_is_a_few_looks_and_the_last_of_them_counts(cluster: Cluster) -> None:
    """Each event comes when the one before has been seen: none can hide behind another."""
    await cluster.started()
    before, began = cluster.passes(), time.monotonic()
    for number in range(1000):
        cluster.edit(ttlSecondsAfterFinished=1000 + number)
        newest = cluster.job()["metadata"]["generation"]
        while cluster.operator.cache.jobs.items["ns", "job"].generation != newest:  # noqa: ASYNC110
            await asyncio.sleep(0)
    cluster.edit(suspend=True)
    await cluster.until("suspended", lambda: bool(cluster.status()["current"].get("stop")))
    paced = BURST + (time.monotonic() - began) / INTERVAL_SECONDS
    assert cluster.passes() - before <= paced + 5, "of a thousand events each was one look"


async def test_events_about_what_a_job_does_not_depend_on_are_no_look_at_all(cluster: Cluster) -> None:
    await cluster.started()
    cluster.server.put("nodes", unnumbered(raw_node("other")))
    await cluster.until("seen", lambda: "other" in cluster.operator.cache.nodes.items)
    await asyncio.sleep(0)
    before = cluster.passes()
    for number in range(300):
        for kind, name, namespace in (("pods", cluster.pods()[0], "ns"), ("nodes", "a1", "")):
            raw = copy.deepcopy(cluster.server.get(kind, name, namespace))
            raw["metadata"]["annotations"] = {"heartbeat": str(number)}
            cluster.server.put(kind, raw)
    cluster.server.remove("nodes", "other")
    await cluster.until("all seen", lambda: "other" not in cluster.operator.cache.nodes.items)
    assert cluster.passes() == before
