"""Jobs that wait are decided together, by one process, and no two have the same GPUs, whatever else is going on."""

import asyncio
import dataclasses
from typing import cast

import pytest

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.cluster.client import Client
from spot_training.control import placer as placing
from spot_training.control.apply import Applier
from spot_training.control.cache import Cache
from spot_training.control.placer import Placer
from spot_training.control.policies.demand import Request
from spot_training.control.world import Accepted, Job
from tests.unit.control.build import GPU, Scene
from tests.unit.control.objects import Json, raw_job, raw_node

POOL: Json = {
    "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1"},
    "spec": {"nodeSelector": {"pool": "a"}},
}


class Setting:
    """A pool of nodes with four GPUs each, and jobs of one pod that takes them all."""

    def __init__(self, nodes: int, jobs: int) -> None:
        self.cache = Cache()
        self.cache.pools.put(POOL)
        for number in range(nodes):
            self.cache.nodes.put(raw_node(f"a{number}"))
        self.looked: list[tuple[str, str]] = []
        self.placer = Placer(self.cache, lambda: 0.0, self.looked.append)
        self.jobs = [self.job(number) for number in range(jobs)]

    def job(self, number: int, **status: object) -> Job:
        raw = raw_job(f"job{number:03}", f"j-{number:03}", version=10 + len(status), **status)
        raw["spec"]["replicas"] = 1
        raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {GPU: "4"}}
        self.cache.jobs.put(raw)
        return self.cache.jobs.items["ns", f"job{number:03}"]

    def request(self, job: Job) -> Request:
        spec: SpotTrainingJobSpec = job.spec
        return Request(spec.replicas, spec.template.spec, spec.pools)

    def pool_for(self, job: Job) -> str | bool | None:
        choice = self.placer.decide(job, self.request(job))
        return choice.pool if choice is not None else False


async def test_while_a_job_writes_that_it_opens_its_gpus_are_set_aside() -> None:
    setting = Setting(nodes=1, jobs=2)
    first, second = setting.jobs
    choice = setting.placer.decide(first, setting.request(first))
    assert choice is not None
    assert choice.pool == "a"
    setting.placer.opening(first, choice)
    assert setting.pool_for(second) is None
    opened = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    setting.job(0, current=opened)
    setting.placer.opened(first)
    assert setting.pool_for(second) is None, "now its status says so"


async def test_they_are_set_aside_on_no_node_that_the_job_keeps_off() -> None:
    setting = Setting(nodes=2, jobs=2)
    first, second = setting.jobs
    request = dataclasses.replace(setting.request(first), avoid=frozenset({"a0"}))
    choice = setting.placer.decide(first, request)
    assert choice is not None
    setting.placer.opening(first, choice)
    made = setting.placer.decide(second, request)
    assert made is not None
    assert (made.pool, made.anywhere) == ("a", True), "only a0 is left"


async def test_a_write_that_was_refused_gives_them_back() -> None:
    setting = Setting(nodes=1, jobs=2)
    first, second = setting.jobs
    choice = setting.placer.decide(first, setting.request(first))
    assert choice is not None
    setting.placer.opening(first, choice)
    setting.placer.opened(first)
    assert setting.pool_for(second) == "a"


async def test_nothing_is_decided_before_every_job_that_waits_has_been_looked_at() -> None:
    setting = Setting(nodes=1, jobs=2)
    first, second = setting.jobs
    setting.placer.expect([first.key, second.key])
    assert setting.pool_for(second) is False
    setting.placer.seen(second.key)
    assert setting.pool_for(first) is False, "it is being looked at"
    setting.placer.seen(first.key)
    await asyncio.sleep(0.001)
    assert setting.looked == [first.key, second.key] or setting.looked == [second.key, first.key]
    assert (setting.pool_for(first), setting.pool_for(second)) == ("a", None), "the older one"


async def test_a_job_that_only_asks_comes_after_all_that_wait() -> None:
    setting = Setting(nodes=1, jobs=2)
    first, second = setting.jobs
    request = setting.request(first)
    choice = setting.placer.probe(first, request)
    assert (choice.pool, choice.request) == ("a", request)
    assert setting.pool_for(second) == "a"
    assert setting.placer.probe(first, request).pool is None, "the older one, but it does not wait"
    assert len(setting.placer) == 1


async def test_many_jobs_are_decided_in_one_pass_and_then_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "AHEAD_SECONDS", 0.0)
    monkeypatch.setattr(placing, "REST", 1000.0)
    setting = Setting(nodes=5, jobs=80)
    told = [setting.pool_for(job) for job in setting.jobs]
    assert told == ["a"] + [False] * 79, "after the first decision comes a rest"
    for _ in range(2000):
        if set(setting.looked) >= {job.key for job in setting.jobs}:
            break
        await asyncio.sleep(0.005)
    chosen = [job.key for job in setting.jobs if setting.pool_for(job) == "a"]
    assert chosen == [job.key for job in setting.jobs[:5]]


async def test_those_who_come_after_the_first_so_many_are_decided_in_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placing, "MOST", 2)
    setting = Setting(nodes=4, jobs=5)
    setting.placer.expect(job.key for job in setting.jobs)
    for job in setting.jobs:
        assert setting.pool_for(job) is False
        setting.placer.seen(job.key)
    opened = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    found: list[str | bool | None] = []
    for number, job in enumerate(setting.jobs):
        for _ in range(2000):
            if job.key in setting.looked:
                break
            await asyncio.sleep(0.005)
        choice = setting.placer.decide(job, setting.request(job))
        assert choice is not None
        found.append(choice.pool)
        waiting = {each.key for each in setting.jobs[number + 1 :]}
        assert len(waiting & set(setting.looked)) <= 2, "of those behind it two have a place at most"
        if choice.pool is not None:
            setting.placer.opening(job, choice)
            setting.job(number, current=opened)
            setting.placer.opened(job)
    assert found == ["a", "a", "a", "a", None]


def test_a_stock_of_places_makes_the_rests_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "STOCK", 1)

    async def rest(nodes: int) -> float:
        setting = Setting(nodes=nodes, jobs=1)
        setting.pool_for(setting.jobs[0])
        return setting.placer._rest_after(0.1)

    assert asyncio.run(rest(nodes=0)) == pytest.approx(0.4)
    assert asyncio.run(rest(nodes=1)) == pytest.approx(2.0)


async def test_numbers_alone_disturb_nobody() -> None:
    setting = Setting(nodes=1, jobs=1)
    (job,) = setting.jobs
    busy = raw_node("a0", version=6)
    busy["status"]["allocatable"][GPU] = "3"
    setting.cache.nodes.put(busy)
    assert setting.pool_for(job) is None
    busy = raw_node("a0", version=7)
    busy["status"]["allocatable"][GPU] = "2"
    setting.cache.nodes.put(busy)
    setting.placer.wake()
    await asyncio.sleep(0.001)
    assert setting.looked == []
    setting.cache.nodes.put(raw_node("a0", version=8))
    setting.placer.wake()
    await asyncio.sleep(0.001)
    assert setting.looked == [job.key]


@pytest.mark.parametrize("told", [100, None])
async def test_the_priority_is_what_the_api_server_resolves(told: int | None) -> None:
    class Server:
        async def create(self, path: str, body: Json, **query: str) -> Json:
            return body | {"spec": body["spec"] | {"priority": told}}

    setting = Setting(nodes=1, jobs=1)
    applier = Applier(cast(Client, Server()), setting.cache)
    assert await applier.dry_run(setting.jobs[0], None) == Accepted(told or 0)


async def test_a_priority_that_is_only_just_known_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that accepts the template is the one that asks for a pool: its status is not written yet."""
    scene = Scene()
    monkeypatch.setattr(scene, "accepted", lambda: Accepted(7))
    scene.step()
    assert scene.plan.request is not None
    assert (scene.plan.request.priority, scene.status.priority) == (7, 7)
