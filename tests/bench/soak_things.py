"""What the soak makes: simulated nodes, a pool, jobs with their volumes, and the status of a pod that has ended."""

import time
from typing import Any, Final

from spot_training.api.times import format_time
from tests.kit import kwok

Json = dict[str, Any]

NAMESPACE: Final = "soak"
LABEL: Final = "spot.training/soak"
NODES: Final = 16
GPUS: Final = 4


def node_names() -> list[str]:
    """The names of all nodes."""
    return [f"soak-{index:02d}" for index in range(NODES)]


def node(name: str) -> Json:
    """A simulated spot node of that name."""
    return kwok.node(name, {LABEL: "node"}, GPUS)


def fake_taint() -> Json:
    """What keeps real pods off simulated nodes."""
    return {"key": kwok.TAINT, "value": "fake", "effect": "NoSchedule"}


def pool() -> Json:
    """The pool of these nodes."""
    spec = {
        "nodeSelector": {LABEL: "node"},
        "noticeSeconds": 20,
        "nodeDeletionMeansGone": True,
        "tolerations": [{"key": kwok.TAINT, "operator": "Exists"}],
    }
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotPool",
        "metadata": {"name": "soak"},
        "spec": spec,
    }


def job(name: str, replicas: int) -> Json:
    """A job that is soon to be ended, and is gone soon after that."""
    container = {
        "name": "main",
        "image": "registry.invalid/soak:1",
        "resources": {"limits": {"nvidia.com/gpu": 2}},
    }
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "soak",
        "volumeName": f"{NAMESPACE}-{name}",
        "resources": {"requests": {"storage": "1Mi"}},
    }
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotTrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "pools": ["soak"],
            "template": {"spec": {"containers": [container]}},
            "checkpoint": {
                "mountPath": "/mnt/checkpoint",
                "claimTemplate": claim,
                "retain": "Never",
                "writer": "Library",
            },
            "recovery": {"backoff": {"initialSeconds": 1, "maxSeconds": 5}},
            "ttlSecondsAfterFinished": 3,
        },
    }


def volume(name: str) -> Json:
    """What the job's claim binds; simulated nodes mount nothing."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{NAMESPACE}-{name}", "labels": {LABEL: "volume"}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Mi"},
            "storageClassName": "soak",
            "hostPath": {"path": "/nonexistent"},
            "claimRef": {"namespace": NAMESPACE, "name": f"{name}-checkpoint"},
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }


def ended(pod: Json, code: int, reason: str) -> Json:
    """The status of a pod whose program has ended."""
    word = "Completed" if code == 0 else "Crashed"
    terminated = {
        "exitCode": code,
        "reason": reason,
        "message": f'{{"reason":"{word}","step":9}}',
        "startedAt": pod["status"].get("startTime"),
        "finishedAt": format_time(time.time())[:19] + "Z",
    }
    statuses = [
        {**each, "ready": False, "started": False, "state": {"terminated": terminated}}
        for each in pod["status"].get("containerStatuses") or ()
    ]
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": statuses}
