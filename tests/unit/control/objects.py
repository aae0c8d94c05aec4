"""Objects as the API server sends them."""

from typing import Any

Json = dict[str, Any]


def raw_pod(name: str = "job-1-0", uid: str = "p-1", version: int = 10, **fields: Any) -> Json:
    """A pod of the job `job`, UID `j-1`, that runs on node `a1`; `fields` replace parts of the status."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-04-08T05:00:00Z",
            "labels": {
                "spot.training/job": "job",
                "spot.training/job-uid": "j-1",
                "spot.training/attempt": "1",
                "spot.training/index": name.rsplit("-", 1)[1],
            },
            "ownerReferences": [
                {
                    "apiVersion": "spot.training/v1alpha1",
                    "kind": "SpotTrainingJob",
                    "name": "job",
                    "uid": "j-1",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "nodeName": "a1",
            "terminationGracePeriodSeconds": 55,
            "containers": [
                {
                    "name": "main",
                    "image": "train:1",
                    "resources": {
                        "limits": {"nvidia.com/gpu": "2", "memory": "1Gi"},
                        "requests": {"nvidia.com/gpu": "2", "cpu": "500m"},
                    },
                },
                {
                    "name": "side",
                    "image": "side:1",
                    "resources": {"limits": {"nvidia.com/gpu": "1", "rdma/hca": "1"}},
                },
            ],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": "side", "state": {"running": {"startedAt": "2026-04-08T05:00:02Z"}}},
                {"name": "main", "state": {"running": {"startedAt": "2026-04-08T05:00:03Z"}}},
            ],
            **fields,
        },
    }


def terminated(code: int, message: str | None = None, **fields: Any) -> Json:
    state = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": "2026-04-08T05:00:03Z",
        "finishedAt": "2026-04-08T05:09:00Z",
        **fields,
    }
    if message is not None:
        state["message"] = message
    return {"terminated": state}


def ended_pod(code: int, message: str | None = None, phase: str = "Failed", **fields: Any) -> Json:
    statuses = [
        {"name": "main", "state": terminated(code, message, **fields)},
        {"name": "side", "state": terminated(0)},
    ]
    return raw_pod(phase=phase, containerStatuses=statuses, version=11)


def raw_node(name: str = "a1", version: int = 5, **fields: Any) -> Json:
    """A ready node with 4 GPUs; `fields`: taints, annotations, unschedulable, ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"{name}-uid",
            "resourceVersion": str(version),
            "labels": {"pool": "a"},
            "annotations": fields.get("annotations", {}),
        },
        "spec": {"taints": fields.get("taints"), "unschedulable": fields.get("unschedulable", False)},
        "status": {
            "allocatable": {"cpu": "7910m", "memory": "30Gi", "nvidia.com/gpu": "4", "hugepages-2Mi": "0"},
            "conditions": [
                {
                    "type": "MemoryPressure",
                    "status": "False",
                    "lastHeartbeatTime": fields.get("heartbeat", "2026-04-08T05:00:00Z"),
                },
                {
                    "type": "Ready",
                    "status": fields.get("ready", "True"),
                    "lastHeartbeatTime": fields.get("heartbeat", "2026-04-08T05:00:00Z"),
                    "lastTransitionTime": "2026-04-08T04:00:00Z",
                },
            ],
        },
    }


def raw_job(name: str = "job", uid: str = "j-1", version: int = 3, **status: Any) -> Json:
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotTrainingJob",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 2,
            "creationTimestamp": "2026-04-08T04:59:00Z",
        },
        "spec": {
            "replicas": 2,
            "pools": ["a"],
            "template": {"spec": {"containers": [{"name": "main", "image": "i"}]}},
            "checkpoint": {"mountPath": "/ckpt", "claimName": "claim"},
        },
        "status": status,
    }


def raw_pool(name: str = "a", **spec: Any) -> Json:
    """A pool of the nodes that bear its name as the label `pool`."""
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotPool",
        "metadata": {"name": name, "uid": f"{name}-uid", "resourceVersion": "1", "generation": 1},
        "spec": {"nodeSelector": {"pool": name}, **spec},
    }


def merged(target: Any, patch: Any) -> Any:
    """The document that a merge patch makes of another (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value)
    return made
