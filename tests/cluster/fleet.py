"""Nodes without machines: the API server has them, nothing runs on them. For what is decided from Node objects alone.

Their kubelets are played here: heartbeats keep the node controller from calling them lost, and a pod that is bound
to one gets the status that its containers would have.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from tests.cluster.objects import Json, kubectl
from tests.kit.shell import wait_until

HEARTBEAT_SECONDS = 10.0
"""The node controller is patient for 50 s (Kubernetes: `--node-monitor-grace-period`)."""


def now(seconds: float = 0.0) -> str:
    """The time so many seconds from now, as the API server writes it."""
    return datetime.fromtimestamp(datetime.now(UTC).timestamp() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def done(*words: str, stdin: str | None = None) -> str:
    code, said, complaint = kubectl(*words, stdin=stdin)
    assert code == 0, complaint
    return said


class Fleet:
    """The nodes that a test has made."""

    def __init__(self, begin: str) -> None:
        self.begin = begin
        self.names: list[str] = []
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def add(self, pool: str, count: int = 1, gpus: int = 4) -> list[str]:
        """Nodes of the pool, Ready; their names."""
        made = [f"{self.begin}-{len(self.names) + number}" for number in range(count)]
        items = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {"spot.training/pool": pool, "kubernetes.io/hostname": name},
                },
            }
            for name in made
        ]
        done("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        self.names += made
        for name in made:
            self._ready(name, gpus)
        wait_until(
            "the nodes taking pods",
            lambda: (
                not any(
                    json.loads(done("get", "node", name, "-o", "json"))["spec"].get("taints") for name in made
                )
            ),
            timeout=40,
            seen=lambda: kubectl("get", "nodes", *made, "-o", "yaml")[1],
        )
        return made

    def _ready(self, name: str, gpus: int | None = None) -> None:
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "Played",
            "message": "no machine is behind this node",
            "lastHeartbeatTime": now(),
        }
        status: Json = {"conditions": [ready]}
        if gpus is not None:
            ready["lastTransitionTime"] = now()
            room = {"nvidia.com/gpu": str(gpus), "cpu": "8", "memory": "32Gi", "pods": "110"}
            status |= {"capacity": room, "allocatable": room}
        patch = json.dumps({"status": status})
        done("patch", "node", name, "--subresource=status", "--type=strategic", "-p", patch)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            for name in list(self.names):
                # A node may be going while its heart still beats.
                with suppress(AssertionError):
                    self._ready(name)

    def mark(self, *names: str, noticed: float = 0.0, deadline: float = 600.0) -> None:
        """What the agent does to a node that will be taken."""
        for name in names:
            facts = {
                "notice-id": f"played-{name}",
                "notice-source": "played",
                "noticed-at": now(noticed),
                "reclaim-deadline": now(deadline),
            }
            metadata = {"annotations": {f"spot.training/{key}": value for key, value in facts.items()}}
            taint = {"key": "spot.training/reclaim", "value": "terminate", "effect": "NoSchedule"}
            patch = {"metadata": metadata, "spec": {"unschedulable": True, "taints": [taint]}}
            done("patch", "node", name, "--type=merge", "-p", json.dumps(patch))

    def label(self, name: str, pool: str) -> None:
        done("label", "node", name, f"spot.training/pool={pool}", "--overwrite")

    def occupy(self, namespace: str, name: str, node: str, gpus: int) -> None:
        """An ordinary pod that has GPUs of the node."""
        limits = {"nvidia.com/gpu": str(gpus)}
        container = {"name": "main", "image": "registry.invalid/none", "resources": {"limits": limits}}
        made = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0},
        }
        done("create", "-f", "-", stdin=json.dumps(made))

    def run(self, namespace: str, pod: str, node: str) -> None:
        """Bind the pod and have its container run."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        made = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/binding"
        done("create", "--raw", path, "-f", "-", stdin=json.dumps(made))
        self._state(namespace, pod, "Running", {"running": {"startedAt": now()}})

    def stop(self, namespace: str, pod: str) -> None:
        """Have the pod's container end as told."""
        ended = {"exitCode": 143, "reason": "Error", "startedAt": now(-5), "finishedAt": now()}
        self._state(namespace, pod, "Failed", {"terminated": ended})

    def _state(self, namespace: str, pod: str, phase: str, state: Json) -> None:
        status: dict[str, Any] = {
            "name": "main",
            "image": "",
            "imageID": "",
            "ready": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        patch = {"status": {"phase": phase, "containerStatuses": [status]}}
        about = ("-n", namespace, "patch", "pod", pod, "--subresource=status", "--type=strategic")
        done(*about, "-p", json.dumps(patch))

    def close(self) -> None:
        self._stop.set()
        self._heart.join()
        if self.names:
            kubectl("delete", "node", *self.names, "--ignore-not-found")


@contextmanager
def fleet(begin: str) -> Iterator[Fleet]:
    """Nodes whose names begin so; gone afterwards."""
    made = Fleet(begin)
    try:
        yield made
    finally:
        made.close()
