"""Jobs that need no spot node, where they are made, and waiting for what becomes of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.cluster.objects import Json, apply, job, kubectl, pool
from tests.kit import jobs
from tests.kit.kube import get
from tests.kit.shell import wait_until


def applied(*manifests: Json) -> None:
    for made in manifests:
        code, _, complaint = apply(made)
        assert code == 0, complaint


def patched(namespace: str, what: str, patch: Json) -> None:
    code, _, complaint = kubectl("-n", namespace, "patch", what, "--type=merge", "-p", json.dumps(patch))
    assert code == 0, complaint


def claim(namespace: str, name: str, mode: str = "ReadWriteMany", **metadata: Any) -> Json:
    """A claim that no volume will ever bind: pods that mount it are made, and wait."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {
            "accessModes": [mode],
            "storageClassName": "spot-training-none",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


def volume(namespace: str, name: str) -> Json:
    """A volume of that name for the claim of that name, with which the scheduler has nothing to wait for."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Mi"},
            "storageClassName": "spot-training-none",
            "claimRef": {"namespace": namespace, "name": name},
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/nonexistent"},
        },
    }


def quota(namespace: str, **hard: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "tight", "namespace": namespace},
        "spec": {"hard": {key.replace("_", "/"): value for key, value in hard.items()}},
    }


def status(namespace: str, name: str) -> Json:
    found: Json = get(f"stj/{name}", "-n", namespace)[0].get("status") or {}
    return found


def pods(namespace: str, name: str) -> list[Json]:
    return get("pods", "-n", namespace, "-l", f"spot.training/job={name}")


def events(namespace: str, name: str) -> list[Json]:
    return get("events", "-n", namespace, "--field-selector", f"involvedObject.name={name}")


def seen(namespace: str, name: str) -> str:
    parts = [json.dumps(status(namespace, name), indent=1)]
    parts += [kubectl("-n", namespace, "get", what)[1] for what in ("pods", "pvc", "events")]
    return "\n".join(parts)


def wait_for(namespace: str, name: str, what: str, happened: Callable[[], bool], timeout: float = 40) -> None:
    wait_until(f"{name}: {what}", happened, timeout=timeout, every=0.2, seen=lambda: seen(namespace, name))


def wait_reason(namespace: str, name: str, reason: str) -> Json:
    """Wait until the job does not run for that reason; returns the very condition that says so."""
    read: list[Json] = [{}]

    def look() -> bool:
        read[0] = jobs.condition(status(namespace, name), "Running")
        return read[0].get("reason") == reason

    wait_for(namespace, name, f"waits because of {reason}", look)
    return read[0]


def wait_opened(namespace: str, name: str) -> None:
    """Wait until the first attempt has all of its pods."""
    wait_for(
        namespace,
        name,
        "attempt 1 has its pods",
        lambda: len(pods(namespace, name)) == get(f"stj/{name}", "-n", namespace)[0]["spec"]["replicas"],
    )


@dataclass(frozen=True)
class Place:
    """Where the stories happen: `names` are unique beginnings of cluster-wide names."""

    names: str
    namespace: str

    @property
    def here(self) -> str:
        """A pool with a node."""
        return f"{self.names}-here"

    def pool(self, name: str, **spec: Any) -> Json:
        """A pool; with `here`, of the on-demand node, on which nobody else's training is."""
        if spec.pop("here", False):
            spec["nodeSelector"] = {"spot.training/capacity-type": "on-demand"}
        return pool(f"{self.names}-{name}", **spec)

    def job(self, name: str, **spec: Any) -> Json:
        """A job on the pool with a node and on a claim of its own name."""
        checkpoint = {"mountPath": "/mnt/checkpoint", "claimName": name}
        return job(name, self.namespace, **{"pools": [self.here], "checkpoint": checkpoint, **spec})

    def claim(self, name: str, *modes: str) -> Json:
        return claim(self.namespace, name, *modes)
