"""Simulated nodes: kwok plays the kubelet of nodes that bear its annotation, and their pods run at once.

For what no machine here can be: thousands of nodes. kwok runs beside the cluster as a process of this machine, with
the stages that it brings: nodes are Ready, pods become Running, deleted pods go.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.kit import gotools, places, process

ANNOTATION: Final = "kwok.x-k8s.io/node"
TAINT: Final = "kwok.x-k8s.io/node"
STAGES: Final = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
"""Of kwok's own module: nodes are Ready at once and stay so, pods run at once and go when they are deleted."""
SETTINGS: Final = """\
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  cidr: 10.0.0.0/24
  podPlayStageParallelism: 64
  nodePlayStageParallelism: 16
  nodeLeaseParallelism: 4
  podsOnNodeSyncParallelism: 1
  enablePodsOnNodeSyncListPager: true
"""
"""A thousand kubelets start and end more than the four pods at a time that are kwok's default. What is not named here
is nothing: a file has no defaults.
"""
LEASE_SECONDS: Final = 100
"""kwok renews them four times in that: well before the controller manager takes a node for lost, after 50 s."""


@contextmanager
def running(lease_seconds: int = LEASE_SECONDS) -> Iterator[None]:
    """Have kwok answer for the nodes that :func:`node` describes, whose Leases hold so long.

    Raises RuntimeError where it ended by itself.
    """
    gotools.ensure({"kwok"})
    stages = gotools.module_dir("sigs.k8s.io/kwok") / "kustomize" / "stage"
    config = [f"--config={file}" for place in STAGES for file in sorted((stages / place).glob("[!k]*.yaml"))]
    (port,) = process.free_ports(1)
    settings = process.log("kwok").with_suffix(".yaml")
    settings.write_text(SETTINGS)
    words: list[str | Path] = [
        gotools.path("kwok"),
        f"--kubeconfig={places.KUBECONFIG}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
        f"--node-lease-duration-seconds={lease_seconds}",
        f"--server-address=127.0.0.1:{port}",
        f"--config={settings}",
        *config,
    ]
    with process.running("kwok", words) as kwok:
        process.wait_ready("kwok", kwok, port)
        yield


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
