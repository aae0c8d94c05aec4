"""Simulated nodes: kwok plays the kubelet of nodes that bear its annotation, and their pods run at once.

For what no machine here can be: thousands of nodes. kwok runs beside the cluster as a process of this machine, with
the stages that it brings: nodes are Ready, pods become Running, deleted pods go.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from spot_training.api.times import parse_time
from tests.kit import gotools, places, process
from tests.kit.kube import get, kubectl
from tests.kit.shell import CommandError, say

ANNOTATION: Final = "kwok.x-k8s.io/node"
TAINT: Final = "kwok.x-k8s.io/node"
REMINDED: Final = "test.example.com/reminded"
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
REMIND_SECONDS: Final = 60.0
"""A pod that has waited for kwok for so long has been given up: what the API server answers with an error other than
that it is busy, kwok does not send again, and looks at the pod no more until that changes. A kubelet never gives up.
"""


@contextmanager
def running(lease_seconds: int = LEASE_SECONDS, *, reminded: bool = True) -> Iterator[None]:
    """Have kwok answer for the nodes that :func:`node` describes, whose Leases hold so long.

    ``reminded``: of pods that it has given up. For tens of thousands of pods that costs more than it mends.
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
        with _reminders() if reminded else nullcontext():
            yield


@contextmanager
def _reminders() -> Iterator[None]:
    over = threading.Event()

    def remind() -> None:
        while not over.wait(REMIND_SECONDS / 4):
            try:
                nodes = {each["metadata"]["name"] for each in get("nodes") if _is_simulated(each)}
                for namespace, name in given_up(get("pods", "-A"), nodes, time.time()):
                    say(f"    kwok has given up pod {namespace}/{name}: reminded")
                    kubectl(
                        "-n",
                        namespace,
                        "annotate",
                        "--overwrite",
                        "pod",
                        name,
                        f"{REMINDED}={time.time():.0f}",
                    )
            except (CommandError, OSError) as error:
                # Somebody deleted it, or the API server is not there: it is looked at again.
                say(f"    kwok was not reminded: {error}")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def given_up(pods: Iterable[dict[str, Any]], nodes: Set[str], now: float) -> list[tuple[str, str]]:
    """Namespace and name of the pods on those nodes that were to start or to go :data:`REMIND_SECONDS` ago."""
    found = []
    for pod in pods:
        meta, status = pod["metadata"], pod["status"]
        bound = next(
            (each for each in status.get("conditions") or () if each["type"] == "PodScheduled"), None
        )
        if "deletionTimestamp" in meta:
            since = parse_time(meta["deletionTimestamp"]) - (meta.get("deletionGracePeriodSeconds") or 0)
        elif status.get("phase") == "Pending" and bound is not None:
            since = parse_time(bound["lastTransitionTime"])
        else:
            continue
        if pod["spec"].get("nodeName") in nodes and now - since > REMIND_SECONDS:
            found.append((meta["namespace"], meta["name"]))
    return found


def _is_simulated(node: dict[str, Any]) -> bool:
    return (node["metadata"].get("annotations") or {}).get(ANNOTATION) == "fake"


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
