"""The operator is killed at every write of a job's life, before it and before its answer: the life is the same.

One life from the first attempt over a reclamation, a failure and a suspension to the end. It is told once without an
accident, and then once for each write and way to be killed at it.
"""

import asyncio
from typing import Any

import pytest

from tests.unit.control.objects import Json, raw_job
from tests.unit.control.operated import Operated
from tests.unit.control.sim import Crash, Sim

PASSES = 12
"""A step of the world is settled in fewer."""


class Life:
    """The world goes on step by step; the operator looks until there is nothing more to write."""

    def __init__(self, kill_at: int | None = None, *, answered: bool = False) -> None:
        job = raw_job()
        job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 4}}
        job["spec"]["checkpoint"]["writer"] = "Library"
        job["spec"]["recovery"] = {"backoff": {"initialSeconds": 1, "maxSeconds": 1}}
        pool = {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
            "spec": {"nodeSelector": {"pool": "a"}},
        }
        self.sim = Sim(job, pool, ["a1", "a2", "a3", "a4"])
        self.writes = 0
        self.kill_at, self.answered = kill_at, answered
        self.told: list[tuple[str, Any, Any, Any]] = []
        self.sim.before_write = self.count
        self.operator = Operated(self.sim)

    def count(self) -> None:
        """Told of each write before it is carried out."""
        if self.writes == self.kill_at:
            self.kill_at = None
            if not self.answered:
                raise Crash
            self.sim.lose = 1
        self.writes += 1

    async def look(self) -> None:
        for _ in range(PASSES):
            before = self.writes
            try:
                self.operator.deliver(len(self.sim.watch))
                await self.operator.reconcile()
            except (Crash, TimeoutError):
                # With the lost answer everything is lost that it knew.
                self.sim.watch.clear()
                self.operator = Operated(self.sim)
                continue
            if self.writes == before:
                break
        else:
            raise AssertionError(f"it does not settle: {self.status}")
        current = self.status.get("current") or {}
        self.told.append(
            (
                self.status["phase"],
                current.get("attempt"),
                self.status["disruptions"],
                self.status["failures"],
            )
        )

    @property
    def status(self) -> Json:
        status: Json = self.sim.job["status"]
        return status

    def pods(self) -> list[Json]:
        """By name: in which order they were made is left to the operator."""
        return sorted(self.sim.pods.values(), key=lambda pod: str(pod["metadata"]["name"]))

    def start(self) -> None:
        for pod in self.pods():
            if pod["status"]["phase"] == "Pending":
                self.sim.bind(pod)
                self.sim.start(pod)

    def stop(self) -> None:
        """Pods that were told to end; they go one step later, for what went unseen nobody can know again."""
        for pod in self.pods():
            if "deletionTimestamp" in pod["metadata"] and pod["status"]["phase"] == "Running":
                self.sim.end(pod, 143, "Error", '{"reason":"Preempted","step":7,"checkpointStep":7}')

    def go(self) -> None:
        for pod in self.pods():
            if "deletionTimestamp" in pod["metadata"] and pod["status"]["phase"] != "Running":
                self.sim.remove(pod)

    def one(self) -> Json:
        return next(pod for pod in self.pods() if pod["status"]["phase"] == "Running")

    def succeed(self) -> None:
        for pod in self.pods():
            if pod["status"]["phase"] == "Running":
                self.sim.end(pod, 0, "Completed", '{"reason":"Completed","step":9}')

    def later(self) -> None:
        self.sim.now += 30
        self.sim.renew()

    async def live(self) -> "Life":
        steps = [
            lambda: None,
            self.start,
            lambda: self.sim.mark("a1", self.sim.now + 60),
            self.stop,
            self.go,
            self.start,
            lambda: self.sim.end(self.one(), 3, "Error"),
            self.later,
            self.stop,
            self.go,
            self.later,
            self.start,
            lambda: self.sim.edit_job(suspend=True),
            self.stop,
            self.go,
            lambda: self.sim.edit_job(suspend=False),
            self.start,
            self.succeed,
        ]
        for step in steps:
            step()
            await self.look()
        return self


def undisturbed() -> Life:
    return asyncio.run(Life().live())


USUAL = undisturbed()


def test_the_life_is_a_full_one() -> None:
    phases = [phase for phase, *_ in USUAL.told]
    assert phases[0] == "Starting" and phases[-1] == "Succeeded", USUAL.told
    assert {"Running", "Recovering", "Suspended"} <= set(phases), USUAL.told
    assert USUAL.told[-1] == ("Succeeded", 4, 1, 1)
    assert USUAL.writes > 20


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(USUAL.writes))
async def test_killed_at_any_write_the_job_lives_the_same_life(write: int, answered: bool) -> None:
    life = await Life(write, answered=answered).live()
    assert life.told == USUAL.told
    assert life.status == USUAL.status
    assert sorted(life.sim.created) == sorted(USUAL.sim.created), "each pod was made once, and in its attempt"
    assert sorted(life.sim.pods) == sorted(USUAL.sim.pods)
