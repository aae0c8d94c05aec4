"""The operator at scale, beside a bare client and beside batch/v1 Jobs, on simulated nodes of one control plane."""

import asyncio
import os
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from spot_training.api import names
from spot_training.api.times import format_time
from spot_training.cluster.client import Client, Connection
from spot_training.control.connect import connection
from spot_training.control.pods import pod, service
from spot_training.control.read import read_job, read_pool
from tests.bench import batch, crowd
from tests.bench.controllers import controller_flags, settled
from tests.bench.costs import noted, written
from tests.bench.crowd import Bulk, Json, count
from tests.bench.operator_process import OperatorProcess, operator_process
from tests.bench.report import Report
from tests.kit import kwok, places
from tests.kit.shell import step

WIDTHS: Final = (16, 32, 64, 128)
LEASE_SECONDS: Final = 800
"""Five thousand Leases that are renewed every 10 s are more than a machine of two processors has room for, and nodes
that are taken for lost because of that, and found again, more than all that is measured here.
"""
CREATED: Final = "POST pods 201"
PATIENT: Final = {"node-monitor-grace-period": "1h"}
JOBS: Final = "bench-jobs"
"""The namespace: whoever makes pods of the jobs, one after the other, does it in the same with the same claims."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    nodes: int = 5000
    jobs: int = 2000
    pods: int = 5

    @property
    def all_pods(self) -> int:
        """Pods of all jobs."""
        return self.jobs * self.pods


async def measure(report: Report, size: Size) -> None:
    """All of it, in one run, while the installed operator is away: it would do the same work, on the same machine."""
    os.environ["KUBECONFIG"] = str(places.KUBECONFIG)
    where = connection()
    async with Client(where) as client, Bulk(where, 64) as bulk:
        await _crowd_away(bulk, client)
        try:
            await bulk.send("POST", "/apis/spot.training/v1alpha1/spotpools", crowd.pool())
            empty = await _resident(client, 0)
            with controller_flags(PATIENT), kwok.running(LEASE_SECONDS, reminded=False):
                with step(f"making {size.nodes} simulated nodes"):
                    await crowd.make_nodes(bulk, client, size.nodes)
                grown = await _resident(client, size.nodes) - empty
                report.value("resident_mib_per_1000_nodes", grown * 1000 / size.nodes, "MiB")
                await crowd.make_namespace(bulk, JOBS)
                with step(f"making {size.jobs} bound claims"):
                    await crowd.make_claims(bulk, JOBS, crowd.job_names(size.jobs))
                    await _bound(client)
                width, first = await _bare(report, where, client, size)
                await batch.measure(report, bulk, client, size.jobs, size.pods, first)
                await _cold_start(report, bulk, client, size, first)
                # Machines grow slower and quicker within the hour that this takes.
                async with Bulk(where, width) as bare_client:
                    second = await _bare_once(bare_client, client, size.jobs, size.pods)
                report.trials("bare_client_create_seconds", (first, second), "s")
                await _resume_and_reclaim(report, bulk, client, size, (first + second) / 2)
        finally:
            await _crowd_away(bulk, client)


async def _resident(client: Client, nodes: int) -> float:
    """MiB that an operator holds once it has seen the pool's nodes, and no jobs."""
    path = f"/apis/spot.training/v1alpha1/spotpools/{crowd.POOL}"

    async def seen() -> bool:
        status = (await client.get(path)).get("status", {})
        return bool(status) and status["nodes"]["total"] == nodes

    async with operator_process() as operator:
        await crowd.wait_for(f"the pool's status says {nodes} nodes", seen, within=120, every=0.5)
        return operator.resident_mib()


async def _bare(report: Report, where: Connection, client: Client, size: Size) -> tuple[int, float]:
    """The best of several widths, and the seconds in which a bare client makes the same objects at that."""
    trial = max(20, size.jobs // 20)
    rates: dict[int, float] = {}
    for width in WIDTHS:
        async with Bulk(where, width) as bulk:
            seconds = await _bare_once(bulk, client, trial, size.pods)
            rates[width] = trial * size.pods / seconds
    best = max(rates, key=lambda width: rates[width])
    report.value("bare_client_best_width", best, "requests at once")
    async with Bulk(where, best) as bulk:
        costs = noted(report, "bare client")
        seconds = await _bare_once(bulk, client, size.jobs, size.pods, costs)
    return best, seconds


async def _bare_once(
    bulk: Bulk,
    client: Client,
    jobs: int,
    pods: int,
    costs: AbstractContextManager[None] | None = None,
) -> float:
    await _make_jobs(bulk, jobs, pods, managed_by="bench/bare-client")
    listed = (await client.get(_jobs_path()))["items"]
    pool = read_pool(await client.get(f"/apis/spot.training/v1alpha1/spotpools/{crowd.POOL}"))

    async def one(raw: Json) -> None:
        job = read_job(raw)
        status = {"status": {"phase": "Starting", "ready": f"0/{pods}"}}
        await bulk.patch(f"{_jobs_path()}/{job.name}/status", status)
        await bulk.send("POST", f"/api/v1/namespaces/{JOBS}/services", service(job))
        path = f"/api/v1/namespaces/{JOBS}/pods"
        await bulk.all(bulk.send("POST", path, pod(job, 1, index, pool)) for index in range(pods))

    await settled()
    with costs or nullcontext(), step(f"a bare client makes {jobs * pods} pods"):
        began = time.monotonic()
        await bulk.all(one(raw) for raw in listed)
        seconds = time.monotonic() - began
    await crowd.empty(bulk, client, JOBS)
    return seconds


async def _resume_and_reclaim(report: Report, bulk: Bulk, client: Client, size: Size, bare: float) -> None:
    raised = next((row.value for row in report.rows if row.name == "batch_jobs_raised_create_seconds"), None)
    await _make_jobs(bulk, size.jobs, size.pods)
    async with operator_process() as operator:
        await _observed(client, size)
        await settled()
        idle = operator.resident_mib()
        began = time.monotonic()
        cpu = operator.cpu_seconds()
        with (
            noted(report, "operator", operator.pid),
            step(f"the operator makes {size.all_pods} pods"),
        ):
            resume = {"spec": {"suspend": False}}
            await bulk.all(
                bulk.patch(f"{_jobs_path()}/{name}", resume) for name in crowd.job_names(size.jobs)
            )
            await _all_pods(client, size)
            seconds = time.monotonic() - began
        report.value("create_seconds", seconds, "s", baseline=bare)
        report.value("create_cpu_seconds", operator.cpu_seconds() - cpu, "s")
        report.value("create_ratio_to_bare_client", seconds / bare, "", "<= 1.3")
        if raised:
            report.value("create_ratio_to_job_controller", seconds / raised, "", "<= 1")
        await _all_running(client, operator, size)
        await _steady(report, operator, size, idle)
        await _mass_reclaim(report, bulk, client, operator, size)


async def _cold_start(report: Report, bulk: Bulk, client: Client, size: Size, bare: float) -> None:
    await _make_jobs(bulk, size.jobs, size.pods, resumed=True)
    await settled()
    began = time.monotonic()
    async with operator_process():
        with step(f"a cold start with {size.jobs} jobs that wait"):
            await _all_pods(client, size)
            seconds = time.monotonic() - began
    report.value("cold_start_create_seconds", seconds, "s", baseline=bare)
    await crowd.empty(bulk, client, JOBS)


async def _steady(report: Report, operator: OperatorProcess, size: Size, idle: float) -> None:
    # What people are told waits until there is time for it.
    await settled()
    seconds = 30.0
    before = operator.cpu_seconds()
    await asyncio.sleep(seconds)
    used = operator.cpu_seconds() - before
    report.value("steady_cpu_percent", 100 * used / seconds, "% of one core", "near 0")
    resident = operator.resident_mib()
    report.value("resident_mib", resident, "MiB", "<= 400")
    report.value("resident_mib_per_1000_pods", (resident - idle) * 1000 / size.all_pods, "MiB")


async def _mass_reclaim(
    report: Report, bulk: Bulk, client: Client, operator: OperatorProcess, size: Size
) -> None:
    """Half of the nodes get a notice; until every job that had a pod there has its next attempt's pods."""
    marked = {f"bench-{index:05d}" for index in range(0, size.nodes, 2)}
    pods = (await client.get(f"/api/v1/namespaces/{JOBS}/pods"))["items"]
    affected = {
        each["metadata"]["labels"][names.LABEL_JOB] for each in pods if each["spec"].get("nodeName") in marked
    }
    before, created = await operator.writes(), written()[CREATED]
    deadline = format_time(time.time() + 600)
    with step(f"{len(marked)} nodes get a notice, {len(affected)} jobs are affected"):
        began = time.monotonic()
        await bulk.all(
            bulk.patch(f"/api/v1/nodes/{name}", _notice(name, deadline)) for name in sorted(marked)
        )
        marking = time.monotonic() - began

        async def recreated() -> int:
            # Nobody else makes any, and to list thousands of them would take the API server seconds.
            return int(written()[CREATED] - created)

        wanted = len(affected) * size.pods
        await crowd.wait_for_all("every affected job has its next pods", recreated, wanted, within=1800)
        seconds = time.monotonic() - began
    report.value("mass_reclaim_marking_seconds", marking, "s")
    report.value("mass_reclaim_recreated_seconds", seconds, "s")
    await _all_running(client, operator, size)
    pods = (await client.get(f"/api/v1/namespaces/{JOBS}/pods"))["items"]
    second = Counter(
        each["metadata"]["labels"][names.LABEL_JOB]
        for each in pods
        if each["metadata"]["labels"][names.LABEL_ATTEMPT] == "2"
    )
    writes = await operator.writes() - before
    report.value("mass_reclaim_writes_per_pod", writes / wanted, "writes", "<= 4")
    jobs = (await client.get(_jobs_path()))["items"]
    wrong = [
        each["metadata"]["name"]
        for each in jobs
        if each["status"].get("disruptions", 0) != int(each["metadata"]["name"] in affected)
        or each["status"].get("failures", 0)
        or second[each["metadata"]["name"]] != size.pods * int(each["metadata"]["name"] in affected)
    ]
    report.value("resident_peak_mib", operator.peak_mib(), "MiB", "<= 400")
    report.value("mass_reclaim_jobs_counted_wrongly", len(wrong), "jobs", "= 0")


def _notice(name: str, deadline: str) -> Json:
    now = format_time(time.time())
    return {
        "metadata": {
            "annotations": {
                names.NOTICE_ID: f"bench-{name}",
                names.NOTICE_KIND: "reclaim",
                names.NOTICE_SOURCE: "bench",
                names.RECLAIM_DEADLINE: deadline,
                names.NOTICED_AT: now,
                names.CORDONED_AT: now,
            }
        },
        "spec": {
            "unschedulable": True,
            "taints": [
                {"key": kwok.TAINT, "value": "fake", "effect": "NoSchedule"},
                {"key": names.TAINT_RECLAIM, "value": "reclaim", "effect": "NoSchedule"},
            ],
        },
    }


async def _make_jobs(
    bulk: Bulk, jobs: int, pods: int, *, managed_by: str = "", resumed: bool = False
) -> None:
    made = [crowd.job(JOBS, name, pods) for name in crowd.job_names(jobs)]
    for each in made:
        if managed_by:
            each["spec"]["managedBy"] = managed_by
        each["spec"]["suspend"] = not resumed
    await bulk.all(bulk.send("POST", _jobs_path(), each) for each in made)


async def _bound(client: Client) -> None:
    async def bound() -> bool:
        claims = await client.get(f"/api/v1/namespaces/{JOBS}/persistentvolumeclaims")
        return all(each.get("status", {}).get("phase") == "Bound" for each in claims["items"])

    await crowd.wait_for("all claims are bound", bound, within=300, every=2)


async def _observed(client: Client, size: Size) -> None:
    """The operator has seen every job and says that it is suspended."""

    async def said() -> bool:
        jobs = (await client.get(_jobs_path()))["items"]
        return sum(1 for each in jobs if each.get("status", {}).get("phase") == "Suspended") == size.jobs

    await crowd.wait_for("every job is known to be suspended", said, within=300, every=1)


async def _all_pods(client: Client, size: Size) -> None:
    async def made() -> int:
        return await count(client, f"/api/v1/namespaces/{JOBS}/pods")

    await crowd.wait_for_all(f"{size.all_pods} pods", made, size.all_pods, within=900)


async def _all_running(client: Client, operator: OperatorProcess, size: Size) -> None:
    """Every job runs, by the operator's own count, and the operator has nothing left to do."""

    async def running() -> bool:
        there = await operator.metric("spot_operator_jobs", 'phase="Running"')
        return there == size.jobs and await operator.metric("spot_operator_queue_depth") == 0

    await crowd.wait_for("every job runs", running, within=1800, every=1)


def _jobs_path() -> str:
    return f"/apis/spot.training/v1alpha1/namespaces/{JOBS}/spottrainingjobs"


async def _crowd_away(bulk: Bulk, client: Client) -> None:
    """What an earlier run may have left, and what this one made."""
    found = (await client.get("/api/v1/namespaces"))["items"]
    mine = [each["metadata"]["name"] for each in found if each["metadata"]["name"].startswith("bench-")]
    await crowd.clear(bulk, client, mine)
    await bulk.send("DELETE", f"/apis/spot.training/v1alpha1/spotpools/{crowd.POOL}")
    await bulk.send("DELETE", f"/api/v1/nodes?labelSelector={crowd.LABEL}%3Dnode")
