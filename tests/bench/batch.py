"""Batch/v1 Jobs of the same shape as the operator's jobs, resumed likewise: what Kubernetes' own controller takes."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from spot_training.cluster.client import Client
from tests.bench import crowd
from tests.bench.crowd import Bulk, count
from tests.bench.report import Report
from tests.kit import layout
from tests.kit.engine import client as client_program
from tests.kit.engine import docker
from tests.kit.kube import kubectl
from tests.kit.shell import run, step, wait_until

NAMESPACE: Final = "bench-batch"
"""What the names of the namespaces begin with."""
RAISED_LIMITS: Final = {"concurrent-job-syncs": "50", "kube-api-qps": "1000", "kube-api-burst": "2000"}
WATCHED_SECONDS: Final = 90.0
"""At default limits ten thousand pods take a quarter of an hour."""
MANIFEST: Final = "/etc/kubernetes/manifests/kube-controller-manager.yaml"


async def measure(report: Report, bulk: Bulk, client: Client, jobs: int, pods: int, bare: float) -> None:
    """At the controller manager's default limits and at raised ones; ``bare``: seconds of the bare client."""
    await _once(report, bulk, client, jobs, pods, bare, "default")
    with _controller_limits(RAISED_LIMITS):
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
    with step(f"batch/v1 Jobs, {label} limits"):
        began = time.monotonic()
        await bulk.all(bulk.patch(f"{path}/{name}", {"spec": {"suspend": False}}) for name in labels)
        made = 0
        while made < jobs * pods and time.monotonic() - began < WATCHED_SECONDS:
            await asyncio.sleep(0.25)
            made = await count(client, f"/api/v1/namespaces/{namespace}/pods")
        seconds = time.monotonic() - began
    # Where time was up, the rest is reckoned at the rate so far.
    whole = seconds * jobs * pods / max(made, 1)
    report.value(f"batch_jobs_{label}_create_seconds", whole, "s", baseline=bare)
    report.value(f"batch_jobs_{label}_pods_seen", made, "pods")


@contextmanager
def _controller_limits(flags: dict[str, str]) -> Iterator[None]:
    """The controller manager with other flags, while the context lasts; kubelet restarts it from its manifest."""
    if not flags:
        yield
        return
    before = docker("exec", layout.CONTROL_PLANE, "cat", MANIFEST)
    manifest: dict[str, Any] = yaml.safe_load(before)
    manifest["spec"]["containers"][0]["command"] += [f"--{name}={value}" for name, value in flags.items()]
    _write_manifest(json.dumps(manifest))
    try:
        yield
    finally:
        _write_manifest(before)


def _write_manifest(text: str) -> None:
    before = _leader()
    argv: list[str | Path] = [
        client_program(),
        "exec",
        "-i",
        layout.CONTROL_PLANE,
        "sh",
        "-c",
        f"cat > {MANIFEST}",
    ]
    run(argv, stdin=text)
    wait_until("another controller manager leads", lambda: _leader() != before, timeout=120, seen=_leader)


def _leader() -> str:
    return kubectl(
        "-n",
        "kube-system",
        "get",
        "lease",
        "kube-controller-manager",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    )
