"""Autoscaled pools with a real autoscaler: Karpenter makes nodes for pods of ours that have none.

The machines are simulated (kwok plays their kubelets), so the pods run without a program; what makes the nodes, why,
and how it takes them away is Karpenter's own.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.objects import Json, changed, job, kubectl
from tests.cluster.scene import applied, events, pods, seen, status
from tests.kit import jobs, karpenter, volumes
from tests.kit.karpenter import InstanceType
from tests.kit.kube import get
from tests.kit.shell import wait_until

GPUS = 4


@dataclass
class Scene:
    """One SpotPool whose NodePool may grow, and one whose NodePool may have a single machine."""

    name: str
    namespace: str

    @property
    def ample(self) -> str:
        return f"{self.name}-ample"

    @property
    def scarce(self) -> str:
        return f"{self.name}-scarce"

    def gang(self, name: str, *pools: str, **spec: Any) -> None:
        """Two ranks, each of which takes a whole machine."""
        volume = f"{self.name}-{name}"
        volumes.make_volume(volume, "1Mi", claim=(self.namespace, name))
        volumes.make_claim(self.namespace, name, volume, "1Mi")
        checkpoint = {"mountPath": "/mnt/checkpoint", "claimName": name}
        made = job(name, self.namespace, replicas=2, pools=list(pools), checkpoint=checkpoint, **spec)
        limits = {"limits": {"nvidia.com/gpu": GPUS}}
        applied(changed(made, {"spec.template.spec.containers.0.resources": limits}))

    def status(self, name: str) -> Json:
        return status(self.namespace, name)

    def wait(self, name: str, what: str, happened: Callable[[], bool], timeout: float = 60) -> None:
        def everything() -> str:
            machines = kubectl("get", "nodes,nodeclaims,nodepools,spotpools", "-o", "wide")[1]
            return f"{seen(self.namespace, name)}\n{machines}"

        wait_until(f"{name}: {what}", happened, timeout=timeout, every=0.2, seen=everything)

    def runs(self, name: str, attempt: int, pool: str) -> list[str]:
        """Wait until that attempt runs on that pool; the names of its nodes."""

        def happened() -> bool:
            found = self.status(name)
            current = found.get("current") or {}
            return (found.get("phase"), current.get("attempt"), current.get("pool")) == (
                "Running",
                attempt,
                pool,
            )

        self.wait(name, f"attempt {attempt} runs on {pool}", happened)
        return sorted(each["name"] for each in self.status(name)["current"]["nodes"])

    def end(self) -> None:
        found = [each["metadata"]["name"] for each in get("stj", "-n", self.namespace)]
        kubectl("-n", self.namespace, "delete", "stj", "--all", "--wait=true")
        kubectl("-n", self.namespace, "delete", "pods", "--all", "--grace-period=0", "--force")
        kubectl("-n", self.namespace, "delete", "pvc", "--all")
        for name in found:
            volumes.delete_volume(f"{self.name}-{name}")
        kubectl("delete", "spotpool", self.ample, self.scarce)


@pytest.fixture(scope="module")
def scene(namespace: str) -> Iterator[Scene]:
    """Both gangs are there from the beginning, so that their waiting is shared."""
    made = Scene(f"k{secrets.token_hex(3)}", namespace)
    with karpenter.running([InstanceType("gpu-4", gpus=GPUS, price=1.0)]):
        try:
            applied(
                karpenter.node_pool(made.ample),
                karpenter.node_pool(made.scarce, gpus=GPUS),
                karpenter.spot_pool(made.ample),
                karpenter.spot_pool(made.scarce),
            )
            made.gang("grows", made.ample)
            made.gang("moves-on", made.scarce, made.ample, provisionTimeoutSeconds=8)
            yield made
        finally:
            made.end()


def test_nodes_are_made_for_a_gang_that_has_none(scene: Scene) -> None:
    nodes = scene.runs("grows", 1, scene.ample)
    assert len(nodes) == 2
    made = {each["metadata"]["name"]: each["metadata"]["labels"] for each in karpenter.nodes(scene.ample)}
    assert set(nodes) <= set(made)
    assert {made[name][karpenter.CAPACITY_TYPE] for name in nodes} == {"spot"}
    said = jobs.condition(scene.status("grows"), "CapacityAvailable")
    assert said["status"] == "True", said


def test_half_a_gang_is_given_back_whole_and_the_next_pool_is_tried(scene: Scene) -> None:
    nodes = scene.runs("moves-on", 2, scene.ample)
    assert len(nodes) == 2
    state = scene.status("moves-on")
    assert (state["failures"], state["disruptions"]) == (0, 0)
    assert [each["pool"] for each in state["demotedPools"]] == [scene.scarce]
    left = [each["metadata"]["name"] for each in pods(scene.namespace, "moves-on")]
    assert sorted(left) == ["moves-on-2-0", "moves-on-2-1"]
    # It was half a gang: one machine was all that this NodePool may have, and one rank ran on it.
    told = {each["reason"] for each in events(scene.namespace, "moves-on-1-0")}
    told |= {each["reason"] for each in events(scene.namespace, "moves-on-1-1")}
    assert "Nominated" in told, told


def test_a_node_that_karpenter_takes_is_left_by_the_whole_gang(scene: Scene) -> None:
    """Its interruption handling deletes the NodeClaim. The pods bear its do-not-disrupt annotation, so it evicts none
    and would wait for ever: it is the operator that reads the taint, and moves.
    """
    first = scene.runs("grows", 1, scene.ample)
    taken = first[0]
    (claim,) = [
        each["metadata"]["name"] for each in get("nodeclaims") if each["status"].get("nodeName") == taken
    ]
    kubectl("delete", "nodeclaim", claim, "--wait=false")
    second = scene.runs("grows", 2, scene.ample)
    assert taken not in second and len(second) == 2
    told = [each["reason"] for index in (0, 1) for each in events(scene.namespace, f"grows-1-{index}")]
    assert "Evicted" not in told, "it was the operator that stopped the pods"
    state = scene.status("grows")
    assert (state["failures"], state["disruptions"]) == (0, 1)
    assert (state["timeline"][0]["reason"], state["timeline"][0]["node"]) == ("Reclaimed", taken)
    scene.wait(
        "grows",
        "Karpenter has ended the node",
        lambda: taken not in [each["metadata"]["name"] for each in get("nodes")],
    )
    assert not get(f"spotpool/{scene.ample}")[0]["status"].get("interruptions", {}).get("lastHour"), (
        "what Karpenter does of its own accord says nothing of how often the cloud takes machines"
    )
