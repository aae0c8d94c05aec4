"""Simulated nodes: kwok plays the kubelet of nodes that bear its annotation, and their pods run at once.

For what no machine here can be: thousands of nodes. kwok runs beside the cluster as a process of this machine, with
the stages that it brings: nodes are Ready, pods become Running, deleted pods go.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.kit import gotools, places
from tests.kit.shell import step

ANNOTATION: Final = "kwok.x-k8s.io/node"
TAINT: Final = "kwok.x-k8s.io/node"
STAGES: Final = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
"""Of kwok's own module: nodes are Ready at once and stay so, pods run at once and go when they are deleted."""
LEASE_SECONDS: Final = 200
"""Five thousand Leases that are renewed every 10 s are more than a machine of two processors has room for."""


@contextmanager
def running() -> Iterator[None]:
    """Have kwok answer for the nodes that :func:`node` describes. Raises RuntimeError where it ended by itself."""
    gotools.ensure({"kwok"})
    stages = gotools.module_dir("sigs.k8s.io/kwok") / "kustomize" / "stage"
    config = [f"--config={file}" for place in STAGES for file in sorted((stages / place).glob("[!k]*.yaml"))]
    log = places.LOGS / "kwok.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [
                str(gotools.path("kwok")),
                f"--kubeconfig={places.KUBECONFIG}",
                "--manage-all-nodes=false",
                f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
                f"--node-lease-duration-seconds={LEASE_SECONDS}",
                *config,
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        if _ends_within(process, 2):
            raise RuntimeError(f"kwok does not start; see {log}")
        yield
        if process.poll() is not None:
            raise RuntimeError(f"kwok ended with {process.returncode}; see {log}")
    finally:
        with step("stopping kwok"):
            process.terminate()
            process.wait(timeout=30)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def node(name: str, labels: dict[str, str], gpus: int = 4) -> dict[str, Any]:
    """A simulated node with fake GPUs. It bears no operating system's label, so that no DaemonSet of the cluster
    puts pods on it, and a taint that keeps others' pods away.
    """
    amounts = {"cpu": "32", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {ANNOTATION: "fake"},
            "labels": {"kubernetes.io/hostname": name, **labels},
        },
        "spec": {"taints": [{"key": TAINT, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"allocatable": amounts, "capacity": amounts},
    }
