"""`make soak`: half a day's worth of churn in minutes, and then nothing may be left of it.

On simulated nodes (kwok), against the real API server: jobs come, fail, are suspended, finish, are deleted; nodes are
marked, taken and come back under their names; pods are killed. Two operators look after it. One is killed and replaced
again and again; the other, whose memory is watched, is frozen now and then, so that they lead in turn.

A cluster of some dozen spot nodes sees a few hundred such things in twelve hours; this makes two a second.
"""

import argparse
import asyncio
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spot_training.api.times import format_time
from spot_training.cluster.client import ApiError, Client, core_path, job_path, node_path
from spot_training.control.connect import connection
from tests.bench import soak_things as things
from tests.bench.report import Report
from tests.kit import kwok, places
from tests.kit.operators import Operator, installed_operator_away
from tests.kit.shell import say

Json = dict[str, Any]

LIVE_JOBS: Final = 20
PAUSE_SECONDS: Final = 0.5
"""Between two things that happen."""
FAULT_SECONDS: Final = 25.0
"""Between two faults of an operator."""
SAMPLE_SECONDS: Final = 2.0
GONE: Final = (404, 409)


@dataclass
class Tale:
    """What was done to a job, and what its status may say because of that."""

    uid: str = ""
    failed: int = 0
    """Programs that were made to fail: no more failures may be counted."""


@dataclass
class Soak:
    """The cluster, and what is done to it."""

    client: Client
    chance: random.Random
    tales: dict[str, Tale] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    marked: dict[str, float] = field(default_factory=dict)
    number: int = 0

    async def quietly(self, request: Awaitable[Json]) -> Json | None:
        """A request about something that may have gone or changed meanwhile."""
        try:
            return await request
        except ApiError as error:
            if error.code not in GONE:
                raise
            return None

    async def listed(self, path: str, **query: str) -> list[Json]:
        items: list[Json] = (await self.client.get(path, **query))["items"]
        return items

    async def jobs(self) -> list[Json]:
        """All jobs; what their status says is compared with what was done to them."""
        found = await self.listed(job_path(things.NAMESPACE))
        for each in found:
            name, status = each["metadata"]["name"], each.get("status") or {}
            failures, disruptions = status.get("failures", 0), status.get("disruptions", 0)
            attempts = (status.get("current") or {}).get("attempt", 0)
            if failures > self.tales[name].failed:
                self.wrong.append(f"{name}: {failures} failures, {self.tales[name].failed} were made")
            if failures + disruptions > attempts:
                self.wrong.append(f"{name}: {failures} + {disruptions} ends of {attempts} attempts")
        return found

    async def running_pods(self) -> list[Json]:
        found = await self.listed(core_path(things.NAMESPACE, "pods"))
        return [
            pod
            for pod in found
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    async def one_thing(self) -> None:
        """Something happens."""
        chances: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (8, self.a_job_comes),
            (6, self.a_job_finishes),
            (2, self.a_program_fails),
            (2, self.a_job_is_suspended_or_resumed),
            (1, self.a_job_is_deleted),
            (3, self.a_pod_is_killed),
            (3, self.a_node_is_marked),
            (4, self.a_marked_node_is_taken_and_comes_back),
            (1, self.a_notice_is_withdrawn),
        ]
        weights = [weight for weight, _ in chances]
        _, thing = self.chance.choices(chances, weights)[0]
        await thing()
        self.done[thing.__name__] += 1

    async def a_job_comes(self) -> None:
        if len(await self.jobs()) >= LIVE_JOBS:
            return
        self.number += 1
        name = f"j{self.number}"
        self.tales[name] = Tale()
        await self.client.create("/api/v1/persistentvolumes", things.volume(name))
        made = await self.client.create(
            job_path(things.NAMESPACE), things.job(name, self.chance.choice([1, 1, 2, 4]))
        )
        self.tales[name].uid = made["metadata"]["uid"]

    async def a_job_finishes(self) -> None:
        await self._end_of_one(0, "Completed")

    async def a_program_fails(self) -> None:
        await self._end_of_one(1, "Error")

    async def _end_of_one(self, code: int, reason: str) -> None:
        pods = await self.running_pods()
        if not pods:
            return
        name = self.chance.choice(pods)["metadata"]["labels"]["spot.training/job"]
        mine = [pod for pod in pods if pod["metadata"]["labels"]["spot.training/job"] == name]
        if code:
            self.tales[name].failed += 1
        for pod in mine if code == 0 else mine[:1]:
            body = {"status": things.ended(pod, code, reason)}
            path = core_path(things.NAMESPACE, "pods", pod["metadata"]["name"], "status")
            await self.quietly(self.client.patch(path, body, "application/strategic-merge-patch+json"))

    async def a_job_is_suspended_or_resumed(self) -> None:
        jobs = [each for each in await self.jobs() if "completionTime" not in (each.get("status") or {})]
        if jobs:
            job = self.chance.choice(jobs)
            body = {"spec": {"suspend": not job["spec"].get("suspend", False)}}
            await self.quietly(self.client.patch(job_path(things.NAMESPACE, job["metadata"]["name"]), body))

    async def a_job_is_deleted(self) -> None:
        jobs = await self.jobs()
        if jobs:
            name = self.chance.choice(jobs)["metadata"]["name"]
            await self.quietly(self.client.delete(job_path(things.NAMESPACE, name)))

    async def a_pod_is_killed(self) -> None:
        pods = await self.running_pods()
        if pods:
            name = self.chance.choice(pods)["metadata"]["name"]
            await self.quietly(self.client.delete(core_path(things.NAMESPACE, "pods", name), grace=0))

    async def a_node_is_marked(self) -> None:
        free = [name for name in things.node_names() if name not in self.marked]
        # Never so many that nothing runs any more.
        if len(self.marked) < things.NODES // 4:
            await self._mark(self.chance.choice(free))

    async def _mark(self, name: str) -> None:
        deadline = time.time() + 20
        self.marked[name] = deadline
        marks = {
            "spot.training/notice-id": f"{name}-{deadline:.0f}",
            "spot.training/notice-kind": "reclaim",
            "spot.training/reclaim-deadline": format_time(deadline),
            "spot.training/noticed-at": format_time(time.time()),
        }
        taint = {"key": "spot.training/reclaim", "value": "reclaim", "effect": "NoSchedule"}
        spec = {"unschedulable": True, "taints": [things.fake_taint(), taint]}
        body = {"metadata": {"annotations": marks}, "spec": spec}
        await self.quietly(self.client.patch(node_path(name), body))

    async def a_marked_node_is_taken_and_comes_back(self) -> None:
        if not self.marked:
            return
        name = self.chance.choice(sorted(self.marked))
        del self.marked[name]
        # Its pods go with it, as PodGC would find after a while.
        for pod in await self.listed("/api/v1/pods", fieldSelector=f"spec.nodeName={name}"):
            path = core_path(pod["metadata"]["namespace"], "pods", pod["metadata"]["name"])
            await self.quietly(self.client.delete(path, grace=0))
        await self.quietly(self.client.delete(node_path(name)))
        await self.client.create(node_path(), things.node(name))

    async def a_notice_is_withdrawn(self) -> None:
        if not self.marked:
            return
        name = self.chance.choice(sorted(self.marked))
        del self.marked[name]
        gone = dict.fromkeys(
            f"spot.training/{each}" for each in ("notice-id", "notice-kind", "reclaim-deadline", "noticed-at")
        )
        spec = {"unschedulable": None, "taints": [things.fake_taint()]}
        await self.quietly(
            self.client.patch(node_path(name), {"metadata": {"annotations": gone}, "spec": spec})
        )

    async def make(self) -> None:
        """Namespace, pool and nodes."""
        await self.client.create("/api/v1/namespaces", {"metadata": {"name": things.NAMESPACE}})
        await self.client.create("/apis/spot.training/v1alpha1/spotpools", things.pool())
        for name in things.node_names():
            await self.client.create(node_path(), things.node(name))

    async def settle(self) -> dict[str, list[str]]:
        """What is left under the jobs as they are, then when all of them are deleted; each after a while.

        First under those that live: what leaked there goes with its job, and would not be found afterwards.
        """
        left = await self._left(self._stale)
        for job in await self.jobs():
            await self.quietly(self.client.delete(job_path(things.NAMESPACE, job["metadata"]["name"])))
        return left | await self._left(self._anything)

    async def _left(self, look: Callable[[], Awaitable[dict[str, list[str]]]]) -> dict[str, list[str]]:
        for _ in range(120):
            if not (left := await look()):
                break
            await asyncio.sleep(0.5)
        return left

    async def _stale(self) -> dict[str, list[str]]:
        """Pods of attempts before the last but one, which is kept for its logs; and what is of no job that is there."""
        current = {
            each["metadata"]["uid"]: ((each.get("status") or {}).get("current") or {}).get("attempt", 0)
            for each in await self.jobs()
        }
        old = []
        for pod in await self.listed(core_path(things.NAMESPACE, "pods")):
            labels = pod["metadata"]["labels"]
            attempt = current.get(labels["spot.training/job-uid"])
            if attempt is None or int(labels["spot.training/attempt"]) < attempt - 1:
                old.append(pod["metadata"]["name"])
        services = [
            each["metadata"]["name"]
            for each in await self.listed(core_path(things.NAMESPACE, "services"))
            if {owner["uid"] for owner in each["metadata"]["ownerReferences"]}.isdisjoint(current)
        ]
        found = {"pods of earlier attempts": old, "services of no job": services}
        return {kind: names for kind, names in found.items() if names}

    async def _anything(self) -> dict[str, list[str]]:
        left: dict[str, list[str]] = {}
        for kind in ("pods", "services", "persistentvolumeclaims"):
            names = [
                each["metadata"]["name"] for each in await self.listed(core_path(things.NAMESPACE, kind))
            ]
            left |= {kind: names} if names else {}
        return left

    async def clear(self) -> None:
        """Take away what :meth:`make` and the jobs have made."""
        for path in (
            *(node_path(name) for name in things.node_names()),
            *(f"/api/v1/persistentvolumes/{things.NAMESPACE}-{name}" for name in self.tales),
            "/apis/spot.training/v1alpha1/spotpools/soak",
            f"/api/v1/namespaces/{things.NAMESPACE}",
        ):
            await self.quietly(self.client.delete(path))


@dataclass(frozen=True)
class Sample:
    """What an operator holds at one time."""

    at: float
    resident_mib: float
    tasks: float
    files: float


class Watched:
    """The operator whose memory is watched, and the other, which comes and goes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.kept = Operator(things.NAMESPACE, directory)
        self.other = Operator(things.NAMESPACE, directory)
        self.samples: list[Sample] = []
        self.faults: Counter[str] = Counter()

    async def sample(self) -> Sample | None:
        """Its memory, tasks and open files now; None while it is frozen."""
        told = await asyncio.to_thread(self.kept.metrics)
        if not told:
            return None
        status = (Path("/proc") / str(self.kept.pid) / "status").read_text()
        found = re.search(r"VmRSS:\s+([0-9]+) kB", status)
        made = Sample(
            time.monotonic(),
            int(found[1]) / 1024 if found else 0.0,
            told["spot_operator_tasks"],
            told["process_open_fds"],
        )
        self.samples.append(made)
        return made

    async def fault(self, chance: random.Random) -> None:
        """Something happens to an operator."""
        kind = chance.choice(["the other is killed", "the other is stopped", "the watched one is frozen"])
        self.faults[kind] += 1
        if kind == "the watched one is frozen":
            self.kept.freeze()
            await asyncio.sleep(12)
            self.kept.thaw()
            return
        if kind == "the other is killed":
            self.other.kill()
        else:
            await asyncio.to_thread(self.other.stop)
        self.other = Operator(things.NAMESPACE, self._directory)

    def end(self) -> None:
        for each in (self.kept, self.other):
            each.end()


async def soak(report: Report, minutes: float, seed: int) -> list[str]:
    """Run, and report; what was wrong."""
    say(f"==> soak of {minutes:g} min, seed {seed}")
    os.environ["KUBECONFIG"] = str(places.KUBECONFIG)
    async with Client(connection(), user_agent="soak") as client:
        made = Soak(client, random.Random(seed))
        with tempfile.TemporaryDirectory() as directory:
            await made.make()
            watched = Watched(Path(directory))
            try:
                for each in (watched.kept, watched.other):
                    await asyncio.to_thread(each.wait_standing_by)
                before = await watched.sample()
                await _churn(made, watched, minutes * 60)
                left = await made.settle()
                await _idle(watched, before)
                return _judge(report, made, watched, before, left)
            finally:
                watched.end()
                await made.clear()


async def _churn(made: Soak, watched: Watched, seconds: float) -> None:
    end = time.monotonic() + seconds

    async def regularly(every: float, what: Callable[[], Awaitable[Any]]) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(every)
            await what()

    faults = random.Random(made.chance.random())
    async with asyncio.TaskGroup() as group:
        group.create_task(regularly(PAUSE_SECONDS, made.one_thing))
        group.create_task(regularly(FAULT_SECONDS, lambda: watched.fault(faults)))
        group.create_task(regularly(SAMPLE_SECONDS, watched.sample))


async def _idle(watched: Watched, before: Sample | None) -> None:
    """Until the watched operator is as quiet as it was, or has had the time for it: kopf's workers idle for seconds."""
    for _ in range(60):
        now = await watched.sample()
        if now is not None and before is not None and now.tasks <= before.tasks + 5:
            return
        await asyncio.sleep(1)


def _judge(
    report: Report, made: Soak, watched: Watched, before: Sample | None, left: dict[str, list[str]]
) -> list[str]:
    wrong = list(dict.fromkeys(made.wrong))
    if left:
        wrong.append(f"left behind: {left}")
    samples = watched.samples
    quarter = max(1, len(samples) // 4)
    early = statistics.median(each.resident_mib for each in samples[quarter : 2 * quarter] or samples)
    late = statistics.median(each.resident_mib for each in samples[-quarter:])
    last = samples[-1]
    first = before or samples[0]
    report.value("soak_resident_mib", late, "MiB", "<= 1.1 of the second quarter's", baseline=early)
    report.value("soak_tasks_after", last.tasks, "tasks", f"<= {first.tasks + 5:g}", baseline=first.tasks)
    report.value(
        "soak_open_files_after", last.files, "files", f"<= {first.files + 5:g}", baseline=first.files
    )
    report.value("soak_things_done", sum(made.done.values()), "things")
    report.value("soak_operator_faults", sum(watched.faults.values()), "faults")
    report.value("soak_left_behind", sum(map(len, left.values())), "objects", "0")
    if late > early * 1.1:
        wrong.append(f"memory grows: {early:.1f} MiB in the second quarter, {late:.1f} in the last")
    if last.tasks > first.tasks + 5:
        wrong.append(f"tasks: {first.tasks:g} at first, {last.tasks:g} at the end")
    if last.files > first.files + 5:
        wrong.append(f"open files: {first.files:g} at first, {last.files:g} at the end")
    say(f"==> done: {dict(made.done)}; faults: {dict(watched.faults)}; jobs: {made.number}")
    return wrong


def main() -> None:
    """Soak, print, and fail where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    report = Report("soak")
    with installed_operator_away(), kwok.running():
        wrong = asyncio.run(soak(report, options.minutes, options.seed))
    report.finish()
    if wrong:
        raise SystemExit("soak: " + "\n".join(wrong))


if __name__ == "__main__":
    main()
