"""A real autoscaler: Karpenter with its own kwok provider, whose machines are Node objects that kwok plays.

It runs beside the cluster as a process of this machine, with the CRDs that its module brings, and leaves nothing:
neither nodes, nor pods that a DaemonSet put on them, nor CRDs.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kit import gotools, kwok, places, process
from tests.kit.kube import apply, get, kubectl
from tests.kit.shell import CommandError, step

Json = dict[str, Any]

MODULE: Final = "sigs.k8s.io/karpenter"
POOL: Final = "karpenter.sh/nodepool"
"""The label by which a node names the NodePool that it was made for."""
CAPACITY_TYPE: Final = "karpenter.sh/capacity-type"
NODE_CLASS: Final = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"}
NODE_PREFIX: Final = "kwok-"
"""How the provider begins the names of its nodes."""
TAINT: Final = "spot-training-test"
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
        "taints": [{"key": TAINT, "value": "karpenter", "effect": "NoSchedule"}],
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
            "tolerations": [{"key": TAINT, "operator": "Exists"}],
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
            words: list[str | Path] = [
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
                try:
                    yield
                finally:
                    _ended_by_itself()
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


def _ended_by_itself() -> None:
    """Have Karpenter take its nodes away, as long as it is there; what it leaves, it was too slow for."""
    with suppress(CommandError):
        kubectl("delete", "nodepools", "--all", "--wait=false")
        kubectl("delete", "nodeclaims", "--all", "--timeout=20s")


def _remove(source: Path) -> None:
    """Nobody is there any more who would take the finalizers away."""
    wanted = [yaml.safe_load(file.read_text())["metadata"]["name"] for file in _crds(source)]
    there = {each["metadata"]["name"] for each in get("customresourcedefinitions")}
    kinds = ["nodes", *(crd for crd in wanted if crd in there)]
    made = {kind: [each["metadata"]["name"] for each in get(kind, *_of_pools(kind))] for kind in kinds}
    objects = [f"{kind}/{name}" for kind, names in made.items() for name in names]
    if objects:
        kubectl("delete", *objects, "--ignore-not-found", "--wait=false")
        for each in kubectl("get", *objects, "--ignore-not-found", "-o", "name").split():
            kubectl("patch", each, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    _remove_pods()
    if there & set(wanted):
        kubectl("delete", *_named(source), "--ignore-not-found", "--timeout=60s")


def _remove_pods() -> None:
    """What DaemonSets of the cluster had on those nodes: nobody would end it but, a minute later, the collector."""
    for each in get("pods", "--all-namespaces"):
        if str(each["spec"].get("nodeName")).startswith(NODE_PREFIX):
            meta = each["metadata"]
            words = ["--grace-period=0", "--force", "--wait=false", "--ignore-not-found"]
            kubectl("-n", meta["namespace"], "delete", "pod", meta["name"], *words)


def _crds(source: Path) -> list[Path]:
    folders = (source / "pkg/apis/crds", source / "kwok/apis/crds")
    return sorted(file for folder in folders for file in folder.glob("karpenter*.yaml"))


def _named(source: Path) -> list[str]:
    return [word for file in _crds(source) for word in ("-f", str(file))]


def _of_pools(kind: str) -> list[str]:
    return ["-l", POOL] if kind == "nodes" else []
