"""A real autoscaler: Karpenter with its own kwok provider, whose machines are Node objects that kwok plays.

It runs beside the cluster as a process of this machine, with the CRDs that its module brings, and leaves nothing:
neither nodes, nor pods that a DaemonSet put on them, nor CRDs.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kit import gotools, kwok, places, process
from tests.kit.kube import apply, get, kubectl
from tests.kit.shell import step

Json = dict[str, Any]

MODULE: Final = "sigs.k8s.io/karpenter"
POOL: Final = "karpenter.sh/nodepool"
"""The label by which a node names the NodePool that it was made for."""
CAPACITY_TYPE: Final = "karpenter.sh/capacity-type"
NODE_CLASS: Final = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"}
PREFIX: Final = "spot-training-test"
"""Every NodePool's taint, so that no other pod of the cluster ever has nodes made for it."""


@dataclass(frozen=True)
class InstanceType:
    """A kind of machine that the provider offers, as spot and on demand, in one zone."""

    name: str
    gpus: int
    price: float
    cpu: int = 8
    memory: str = "32Gi"
    zone: str = "zone-k"

    @property
    def offered(self) -> Json:
        """What the provider reads of it."""
        return {
            "name": self.name,
            "architecture": "amd64",
            "operatingSystems": ["linux"],
            "resources": {
                "cpu": str(self.cpu),
                "memory": self.memory,
                "ephemeral-storage": "100Gi",
                "nvidia.com/gpu": str(self.gpus),
            },
            "offerings": [
                {
                    "Price": price,
                    "Available": True,
                    "Requirements": [
                        {"key": CAPACITY_TYPE, "operator": "In", "values": [capacity_type]},
                        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [self.zone]},
                    ],
                }
                for capacity_type, price in (("spot", self.price), ("on-demand", self.price * 3))
            ],
        }


def node_pool(name: str, gpus: int | None = None) -> Json:
    """A NodePool of spot machines, with at most so many GPUs in all."""
    template = {
        "nodeClassRef": NODE_CLASS,
        "expireAfter": "Never",
        "requirements": [{"key": CAPACITY_TYPE, "operator": "In", "values": ["spot"]}],
        "taints": [{"key": PREFIX, "value": "karpenter", "effect": "NoSchedule"}],
    }
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus is not None else {}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "template": {"spec": template},
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "0s"},
            **limits,
        },
    }


def spot_pool(name: str, **spec: Any) -> Json:
    """The autoscaled SpotPool of that NodePool's machines."""
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotPool",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {POOL: name, CAPACITY_TYPE: "spot"},
            "tolerations": [{"key": PREFIX, "operator": "Exists"}],
            "provisioning": "Autoscaled",
            **spec,
        },
    }


def nodes(pool: str) -> list[Json]:
    """What Karpenter has made for a NodePool."""
    return get("nodes", "-l", f"{POOL}={pool}")


@contextmanager
def running(types: Sequence[InstanceType]) -> Iterator[None]:
    """Have Karpenter make simulated nodes of these types for pods that find no room."""
    places.make_all()
    gotools.ensure({"karpenter"})
    source = gotools.module_dir(MODULE)
    with kwok.running(), tempfile.TemporaryDirectory() as directory:
        offered = Path(directory) / "instance-types.json"
        offered.write_text(json.dumps([each.offered for each in types]))
        _remove(source)  # what a run that was killed has left
        try:
            _install(source)
            metrics, health = process.free_ports(2)
            words = [
                gotools.path("karpenter"),
                f"--instance-types-file-path={offered}",
                f"--metrics-port={metrics}",
                f"--health-probe-port={health}",
                "--disable-leader-election=true",
                # Pods of a gang are made within the second; the rest of the ten is waiting.
                "--batch-max-duration=2s",
            ]
            with process.running("karpenter", words) as karpenter:
                process.wait_ready("karpenter", karpenter, health)
                yield
        finally:
            with step("removing what Karpenter has made"):
                _remove(source)


def _install(source: Path) -> None:
    kubectl("apply", "--server-side", *_named(source))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", *_named(source))
    apply(
        {
            "apiVersion": "karpenter.kwok.sh/v1alpha1",
            "kind": NODE_CLASS["kind"],
            "metadata": {"name": NODE_CLASS["name"]},
        }
    )


def _remove(source: Path) -> None:
    """Nobody is there any more who would take the finalizers away."""
    wanted = [yaml.safe_load(file.read_text())["metadata"]["name"] for file in _crds(source)]
    there = {each["metadata"]["name"] for each in get("customresourcedefinitions")}
    made = [each["metadata"]["name"] for each in get("nodes", "-l", POOL)]
    objects = [f"node/{name}" for name in made]
    objects += [f"{crd}/{each['metadata']['name']}" for crd in wanted if crd in there for each in get(crd)]
    for each in objects:
        kubectl("delete", each, "--ignore-not-found", "--wait=false")
    for each in objects:
        if kubectl("get", each, "--ignore-not-found"):
            kubectl("patch", each, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    for name in made:
        words = ["--field-selector", f"spec.nodeName={name}", "--grace-period=0", "--force"]
        kubectl("delete", "pods", "--all-namespaces", *words, "--wait=false")
    if there & set(wanted):
        kubectl("delete", *_named(source), "--ignore-not-found", "--timeout=60s")


def _crds(source: Path) -> list[Path]:
    folders = (source / "pkg/apis/crds", source / "kwok/apis/crds")
    return sorted(file for folder in folders for file in folder.glob("karpenter*.yaml"))


def _named(source: Path) -> list[str]:
    return [word for file in _crds(source) for word in ("-f", str(file))]
