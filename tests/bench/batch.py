"""Batch/v1 Jobs of the same shape as the operator's jobs, resumed likewise: what Kubernetes' own controller takes."""

import time
from typing import Final

from spot_training.cluster.client import Client
from tests.bench import crowd
from tests.bench.controllers import controller_flags, settled
from tests.bench.crowd import Bulk, count, counted
from tests.bench.report import Report
from tests.kit.shell import step

NAMESPACE: Final = "bench-batch"
"""What the names of the namespaces begin with."""
RAISED_LIMITS: Final = {"concurrent-job-syncs": "50", "kube-api-qps": "1000", "kube-api-burst": "2000"}
WATCHED_SECONDS: Final = 90.0
"""At default limits ten thousand pods take a quarter of an hour."""


async def measure(report: Report, bulk: Bulk, client: Client, jobs: int, pods: int, bare: float) -> None:
    """At the controller manager's default limits and at raised ones; ``bare``: seconds of the bare client."""
    await _once(report, bulk, client, jobs, pods, bare, "default")
    with controller_flags(RAISED_LIMITS):
        # With the default ones the Jobs' finalizers would come off their pods for minutes.
        await crowd.clear(bulk, client, [f"{NAMESPACE}-default"])
        await _once(report, bulk, client, jobs, pods, bare, "raised")
        await crowd.clear(bulk, client, [f"{NAMESPACE}-raised"])


async def _once(
    report: Report, bulk: Bulk, client: Client, jobs: int, pods: int, bare: float, label: str
) -> None:
    namespace = f"{NAMESPACE}-{label}"
    await crowd.make_namespace(bulk, namespace)
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    labels = crowd.job_names(jobs)
    await bulk.all(bulk.send("POST", path, crowd.batch_job(namespace, name, pods)) for name in labels)
    await settled()
    with step(f"batch/v1 Jobs, {label} limits"):
        began = time.monotonic()
        await bulk.all(bulk.patch(f"{path}/{name}", {"spec": {"suspend": False}}) for name in labels)
        pods_path = f"/api/v1/namespaces/{namespace}/pods"
        made = await counted(lambda: count(client, pods_path), jobs * pods, WATCHED_SECONDS)
        seconds = time.monotonic() - began
    # Where time was up, the rest is reckoned at the rate so far.
    whole = seconds * jobs * pods / max(made, 1)
    report.value(f"batch_jobs_{label}_create_seconds", whole, "s", baseline=bare)
    report.value(f"batch_jobs_{label}_pods_seen", made, "pods")
