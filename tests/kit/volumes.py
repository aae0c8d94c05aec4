"""PersistentVolumes on the directory that all workers share: what a network file system is to a real cluster."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.kit import engine, layout, places
from tests.kit.kube import apply, kubectl

STORAGE_CLASS = "spot-training-shared"
"""Named by volumes and claims alike, so that no other class's provisioner answers; no object of it is needed."""


def make_volume(
    name: str,
    capacity: str = "1Gi",
    access_mode: str = "ReadWriteMany",
    claim: tuple[str, str] | None = None,
    zone: str | None = None,
) -> Path:
    """Make a PersistentVolume and return its directory on this machine.

    `claim` is (namespace, name) of the one claim that may bind it; `zone` makes it a volume that only that
    zone's nodes can mount. It is world-writable, and its reclaim policy is Retain: delete it with `delete_volume`.
    """
    directory = places.SHARED / name
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    spec: dict[str, Any] = {
        "capacity": {"storage": capacity},
        "accessModes": [access_mode],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": STORAGE_CLASS,
        "hostPath": {"path": f"{layout.SHARED_MOUNT}/{name}", "type": "Directory"},
    }
    if claim:
        spec["claimRef"] = {"namespace": claim[0], "name": claim[1]}
    if zone:
        expression = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    return directory


def make_claim(namespace: str, name: str, volume: str, capacity: str = "1Gi") -> None:
    """Make a PersistentVolumeClaim that binds the volume of that name and no other."""
    access_modes = json.loads(kubectl("get", "persistentvolume", volume, "-o", "json"))["spec"]["accessModes"]
    spec = {
        "accessModes": access_modes,
        "storageClassName": STORAGE_CLASS,
        "volumeName": volume,
        "resources": {"requests": {"storage": capacity}},
    }
    metadata = {"namespace": namespace, "name": name}
    apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


def delete_volume(name: str) -> None:
    """Delete a volume and what was written to it; its claim must be gone."""
    kubectl("delete", "persistentvolume", name, "--ignore-not-found")
    remove_shared(places.SHARED / name)


def remove_shared(path: Path) -> None:
    """Remove what pods have written under the shared directory, though the files may be another user's."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError:
        inside = f"/shared/{path.relative_to(places.SHARED)}"
        mount = ["--rm", "--volume", f"{places.SHARED}:/shared", "--entrypoint", "rm"]
        image = str(json.loads(places.CLUSTER_FILE.read_text())["image"])
        engine.docker("run", *mount, image, "-rf", inside)
