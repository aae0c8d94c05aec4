"""What the test cluster looks like: its nodes, their pools, and how kind is told to make them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from tests.kit import machine, network, places

CLUSTER: Final = "spot-training"
CONTROL_PLANE: Final = f"{CLUSTER}-control-plane"
SHARED_MOUNT: Final = "/mnt/shared"
GPU_RESOURCE: Final = "nvidia.com/gpu"
GPUS_PER_WORKER: Final = 4
CAPACITY_TYPE: Final = "spot.training/capacity-type"


@dataclass(frozen=True)
class Worker:
    name: str
    pool: str
    capacity_type: str
    zone: str

    @property
    def is_spot(self) -> bool:
        return self.capacity_type == "spot"

    @property
    def labels(self) -> dict[str, str]:
        """The labels that a cloud's node pool would have given to its nodes."""
        return {
            "spot.training/pool": self.pool,
            CAPACITY_TYPE: self.capacity_type,
            "topology.kubernetes.io/zone": self.zone,
        }

    @property
    def taints(self) -> list[dict[str, str]]:
        """Spot nodes repel what does not ask for them, as the clouds' own spot pools do."""
        if not self.is_spot:
            return []
        return [{"key": CAPACITY_TYPE, "value": "spot", "effect": "NoSchedule"}]


WORKERS: Final = (
    Worker(f"{CLUSTER}-worker", "spot-a", "spot", "zone-a"),
    Worker(f"{CLUSTER}-worker2", "spot-a", "spot", "zone-a"),
    Worker(f"{CLUSTER}-worker3", "spot-b", "spot", "zone-b"),
    Worker(f"{CLUSTER}-worker4", "on-demand", "on-demand", "zone-a"),
)
WORKER_NAMES: Final = tuple(worker.name for worker in WORKERS)
NODES: Final = (CONTROL_PLANE, *WORKER_NAMES)


def kind_configuration(has_network: bool) -> str:
    """What kind is told, as JSON (which is YAML). It adapts to what this machine lacks, found by asking."""
    patches: list[dict[str, object]] = []
    containerd: list[str] = []
    kubelet: dict[str, object] = {}
    proxy: dict[str, object] = {}
    if machine.has_cgroup_v1():
        kubelet["failCgroupV1"] = False
    if machine.lacks_cap_sys_resource():
        # Scores below the container's own, and a larger conntrack table, could not be set.
        kubelet["oomScoreAdj"] = 0
        proxy |= {"oomScoreAdj": 0, "conntrack": {"maxPerCore": 0}}
        containerd.append(
            'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true\n'
        )
    # Nothing here outlives the machine: etcd need not wait for its disk at each write.
    etcd = {"local": {"extraArgs": [{"name": "unsafe-no-fsync", "value": "true"}]}}
    patches.append({"kind": "ClusterConfiguration", "etcd": etcd})
    if kubelet:
        patches.append({"kind": "KubeletConfiguration", **kubelet})
    if proxy:
        patches.append({"kind": "KubeProxyConfiguration", **proxy})
    configuration = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": CLUSTER,
        "networking": {
            "disableDefaultCNI": not has_network,
            "podSubnet": network.POD_SUBNET,
            # nftables needs no guess at which of the two iptables the machine's other rules are in.
            "kubeProxyMode": "nftables",
        },
        "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
        "containerdConfigPatches": containerd,
        "nodes": [{"role": "control-plane"}, *(_kind_worker(worker) for worker in WORKERS)],
    }
    return json.dumps(configuration, indent=2)


def digest(node_image: str, configuration: str) -> str:
    """Tells whether a running cluster is the one that would be made now."""
    return hashlib.sha256(f"{node_image}\n{configuration}".encode()).hexdigest()[:16]


def _kind_worker(worker: Worker) -> dict[str, object]:
    node: dict[str, object] = {
        "role": "worker",
        "labels": worker.labels,
        "extraMounts": [{"hostPath": str(places.SHARED), "containerPath": SHARED_MOUNT}],
    }
    if worker.taints:
        registration = {"kind": "JoinConfiguration", "nodeRegistration": {"taints": worker.taints}}
        node["kubeadmConfigPatches"] = [json.dumps(registration)]
    return node
