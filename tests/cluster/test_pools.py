"""Situations in which a cluster may find itself with its capacity, each on the real API server.

The nodes have no machines: what is shown is what the operator decides and says. Every test has pools, nodes and
jobs of its own; a job's claim is bound by nobody, so its pods are made and wait.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.fleet import Fleet, done, fleet
from tests.cluster.objects import Json, changed, job, kubectl, pool
from tests.cluster.scene import applied, claim, pods, status, volume, wait_for, wait_reason
from tests.kit import jobs
from tests.kit.install import NAMESPACE
from tests.kit.kube import get
from tests.kit.shell import wait_until


@dataclass
class Scene:
    """One test's own part of the cluster."""

    name: str
    namespace: str
    fleet: Fleet

    def pool(self, name: str, nodes: int = 0, gpus: int = 4, **spec: Any) -> list[str]:
        """A pool, and its nodes' names."""
        applied(pool(f"{self.name}-{name}", **spec))
        return self.fleet.add(f"{self.name}-{name}", nodes, gpus) if nodes else []

    def job(self, name: str, *names: str, replicas: int = 1, gpus: int = 4, **template: Any) -> None:
        """A job on these pools."""
        full = f"{self.name}-{name}"
        made = job(
            full,
            self.namespace,
            pools=[f"{self.name}-{each}" for each in names],
            replicas=replicas,
            checkpoint={"mountPath": "/mnt/checkpoint", "claimName": full},
            **template.pop("spec", {}),
        )
        limits = {"spec.template.spec.containers.0.resources": {"limits": {"nvidia.com/gpu": gpus}}}
        own = {f"spec.template.spec.{key}": value for key, value in template.items()}
        applied(claim(self.namespace, full), changed(made, limits | own))

    def status(self, name: str) -> Json:
        return status(self.namespace, f"{self.name}-{name}")

    def waits(self, name: str, reason: str, *words: str) -> None:
        """Wait until the job waits for that reason, and says so of each pool in these words."""
        full = f"{self.name}-{name}"
        wait_reason(self.namespace, full, reason)
        wait_for(
            self.namespace,
            full,
            f"says {words}",
            lambda: all(
                word in jobs.condition(self.status(name), "CapacityAvailable").get("message", "")
                for word in words
            ),
        )
        assert pods(self.namespace, full) == [], "a job that waits has no pods"

    def opens(self, name: str, on: str, attempt: int = 1, timeout: float = 40) -> None:
        """Wait until the attempt is open on that pool and has all of its pods."""
        full = f"{self.name}-{name}"

        def opened() -> bool:
            current = self.status(name).get("current") or {}
            made = [
                each
                for each in pods(self.namespace, full)
                if f"{full}-{attempt}-" in each["metadata"]["name"]
            ]
            wanted = get(f"stj/{full}", "-n", self.namespace)[0]["spec"]["replicas"]
            return (current.get("attempt"), current.get("pool"), len(made)) == (
                attempt,
                f"{self.name}-{on}",
                wanted,
            )

        wait_for(self.namespace, full, f"attempt {attempt} on {on}", opened, timeout)

    def delete(self, what: str, name: str) -> None:
        done("-n", self.namespace, "delete", what, name, "--wait=false")

    def end(self, name: str) -> None:
        self.delete("stj", f"{self.name}-{name}")

    def pool_says(self, name: str, what: str, happened: Callable[[Json], bool], timeout: float = 40) -> Json:
        """Wait until the pool's status is such; returns that very status."""
        full = f"{self.name}-{name}"

        read: list[Json] = [{}]

        def look() -> bool:
            read[0] = get(f"spotpool/{full}")[0].get("status") or {}
            return happened(read[0])

        wait_until(
            f"{full}: {what}", look, timeout=timeout, every=0.2, seen=lambda: json.dumps(read[0], indent=1)
        )
        return read[0]


@contextmanager
def playing(namespace: str) -> Iterator[Scene]:
    """A scene, of which nothing is left afterwards."""
    name = f"p{secrets.token_hex(3)}"
    with fleet(name) as made:
        yield Scene(name, namespace, made)
        mine = [each["metadata"]["name"] for each in get("stj", "-n", namespace)]
        for each in mine:
            if each.startswith(name):
                kubectl("-n", namespace, "delete", "stj", each, "--wait=true")
    pools = [each["metadata"]["name"] for each in get("spotpools")]
    kubectl("delete", "spotpool", "--ignore-not-found", *(each for each in pools if each.startswith(name)))


@pytest.fixture
def scene(namespace: str) -> Iterator[Scene]:
    with playing(namespace) as made:
        yield made


@dataclass
class Breaker:
    """A pool whose breaker has opened with that status, and a job that waits for it to close."""

    scene: Scene
    opened: Json


@pytest.fixture(scope="module")
def breaker(namespace: str) -> Iterator[Breaker]:
    """It closes by the minute: it is opened before all others, and seen to close after them."""
    with playing(namespace) as scene:
        nodes = scene.pool("a", 3, maxInterruptionsPerHour=1)
        # The first leaves the hour while the others are tried: counts are kept by the minute.
        minute = (time.time() - 3645 + 59) // 60 * 60
        scene.fleet.mark(nodes[0], noticed=minute - time.time() + 1)
        scene.fleet.mark(nodes[1])
        opened = scene.pool_says("a", "open", lambda s: condition(s, "BreakerOpen").get("status") == "True")
        scene.job("one", "a")
        scene.waits("one", "BreakerOpen", "breaker open until 2", "more than 1 interruptions in an hour")
        yield Breaker(scene, opened)


def condition(state: Json, type_: str) -> Json:
    return next((each for each in state.get("conditions", []) if each["type"] == type_), {})


def test_the_breaker_opens_and_a_job_waits_for_it(breaker: Breaker) -> None:
    assert breaker.opened["interruptions"]["lastHour"] == 2
    assert breaker.opened["nodes"] == {"total": 3, "ready": 3, "reclaiming": 2}


def test_a_pool_is_exhausted_and_comes_back(scene: Scene) -> None:
    (node,) = scene.pool("a", 1)
    scene.fleet.occupy(scene.namespace, f"{scene.name}-other", node, 1)
    scene.pool_says("a", "three GPUs free", lambda s: s.get("gpus") == {"total": 4, "free": 3})
    scene.job("one", "a")
    scene.waits("one", "NoCapacity", "1 pods of 4 nvidia.com/gpu do not fit: 3 free on 1 nodes, room for 0")
    kubectl("-n", scene.namespace, "delete", "pod", f"{scene.name}-other", "--force", "--grace-period=0")
    scene.opens("one", "a")
    full = scene.pool_says("a", "exhausted", lambda s: s.get("jobs", {}).get("count") == 1)
    assert full["gpus"] == {"total": 4, "free": 0}
    assert condition(full, "Available")["message"] == "No capacity currently available"
    assert full["jobs"]["names"] == [f"{scene.namespace}/{scene.name}-one"]


def test_a_gang_larger_than_any_pool(scene: Scene) -> None:
    scene.pool("a", 2)
    scene.pool("b", 1)
    scene.job("huge", "a", "b", replicas=3)
    scene.job("small", "a")
    scene.opens("small", "a")
    scene.waits("huge", "GangTooLarge", "-a: ", "-b: ", "for 2 if the nodes were empty", "for 1 if the nodes")
    scene.fleet.add(f"{scene.name}-b", 2)
    scene.opens("huge", "b")


def test_free_gpus_and_no_node_with_enough(scene: Scene) -> None:
    for number, node in enumerate(scene.pool("a", 2)):
        scene.fleet.occupy(scene.namespace, f"{scene.name}-other{number}", node, 3)
    scene.pool_says("a", "two GPUs free", lambda s: s.get("gpus") == {"total": 8, "free": 2})
    scene.job("two", "a", gpus=2)
    scene.waits("two", "NoCapacity", "2 free on 2 nodes, room for 0")


def test_the_scheduler_leaves_the_large_job_its_node(scene: Scene) -> None:
    """Two jobs of half a node each and one of a whole node, on two nodes: they fit if the small ones share one."""
    scene.pool("a", 2, gpus=8)
    sizes = {"half": 4, "other": 4, "whole": 8}
    volumes = [f"{scene.name}-{name}" for name in sizes]
    applied(*(volume(scene.namespace, name) for name in volumes))
    try:
        for name, gpus in sizes.items():
            scene.job(name, "a", gpus=gpus)
        on = {name: scheduled(scene, name) for name in sizes}
    finally:
        kubectl("delete", "pv", *volumes, "--wait=false")
    assert on["half"] == on["other"] != on["whole"], on


def scheduled(scene: Scene, name: str) -> str:
    """Wait until the scheduler has found a node for the job's pod; which one."""
    full, found = f"{scene.name}-{name}", [""]

    def look() -> bool:
        found[0] = next((each["spec"].get("nodeName", "") for each in pods(scene.namespace, full)), "")
        return bool(found[0])

    wait_for(scene.namespace, full, "is scheduled", look)
    return found[0]


def test_two_gangs_and_room_for_one(scene: Scene) -> None:
    scene.pool("a", 3)
    scene.job("one", "a", replicas=2)
    scene.opens("one", "a")
    scene.job("two", "a", replicas=2)
    scene.waits("two", "NoCapacity", "4 free on 3 nodes, room for 1")
    # What is left is kept for the gang that waits. Of two jobs of the same second the name decides.
    scene.job("wee", "a")
    scene.waits("wee", "HeldForAnother", f"kept for {scene.namespace}/{scene.name}-two")
    scene.end("one")
    scene.opens("two", "a")
    scene.opens("wee", "a")


def test_a_high_priority_arrives(scene: Scene) -> None:
    applied(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": scene.name},
            "value": 1000,
            "preemptionPolicy": "Never",
        }
    )
    try:
        scene.pool("a", 1)
        scene.job("runs", "a")
        scene.opens("runs", "a")
        scene.job("early", "a")
        scene.waits("early", "NoCapacity")
        scene.job("urgent", "a", priorityClassName=scene.name)
        scene.waits("urgent", "NoCapacity")
        assert scene.status("urgent")["priority"] == 1000
        scene.end("runs")
        scene.opens("urgent", "a")
        scene.waits("early", "NoCapacity")
    finally:
        kubectl("delete", "priorityclass", scene.name)


def test_a_node_joins_another_pool(scene: Scene) -> None:
    (node,) = scene.pool("a", 1)
    scene.pool("b")
    scene.job("one", "b")
    scene.waits("one", "NoCapacity", "no node matches its nodeSelector")
    scene.fleet.label(node, f"{scene.name}-b")
    scene.opens("one", "b")
    left = scene.pool_says("a", "empty", lambda s: s.get("nodes", {}).get("total") == 0)
    assert condition(left, "Available")["reason"] == "NoNodes"
    # And away again, under the attempt: it goes on, and its pool says where.
    scene.fleet.run(scene.namespace, f"{scene.name}-one-1-0", node)
    wait_for(
        scene.namespace,
        f"{scene.name}-one",
        "runs",
        lambda: scene.status("one").get("phase") == "Running",
    )
    scene.fleet.label(node, f"{scene.name}-a")
    said = scene.pool_says("b", "elsewhere", lambda s: condition(s, "NodesElsewhere").get("status") == "True")
    assert node in condition(said, "NodesElsewhere")["message"]
    assert scene.status("one")["phase"] == "Running"


def test_pools_that_share_nodes_give_their_gpus_away_once(scene: Scene) -> None:
    (node,) = scene.pool("a", 1)
    applied(pool(f"{scene.name}-b", nodeSelector={"spot.training/pool": f"{scene.name}-a"}))
    said = scene.pool_says("b", "overlaps", lambda s: condition(s, "Overlapping").get("status") == "True")
    assert f"1 nodes are also in {scene.name}-a: {node}" in condition(said, "Overlapping")["message"]
    scene.job("one", "a")
    scene.opens("one", "a")
    scene.job("two", "b")
    scene.waits("two", "NoCapacity", "0 free on 1 nodes")


def test_all_nodes_of_the_best_pool_are_reclaimed_at_once(scene: Scene) -> None:
    """Everything goes on in the next best; what is lost is counted once, and the pool's rate shows it."""
    best = scene.pool("best", 2, pricePerNodeHour="1.00")
    second = scene.pool("second", 1, pricePerNodeHour="2.00")
    third = scene.pool("third", 1, pricePerNodeHour="3.00")
    names = ("best", "second", "third")
    for number, name in enumerate(("one", "two")):
        scene.job(name, *names)
        scene.opens(name, "best")
        scene.fleet.run(scene.namespace, f"{scene.name}-{name}-1-0", best[number])
    for name in ("one", "two"):
        wait_for(
            scene.namespace,
            f"{scene.name}-{name}",
            "runs",
            lambda name=name: scene.status(name).get("phase") == "Running",  # type: ignore[misc]
        )
    scene.fleet.mark(*best)
    for name in ("one", "two"):
        wait_for(
            scene.namespace,
            f"{scene.name}-{name}",
            "told to stop",
            lambda name=name: bool(scene.status(name)["current"].get("stop")),  # type: ignore[misc]
        )
        scene.fleet.stop(scene.namespace, f"{scene.name}-{name}-1-0")
    wait_until(
        "both on the next best pools",
        lambda: (
            {
                (scene.status(name)["current"]["attempt"], scene.status(name)["current"]["pool"])
                for name in ("one", "two")
            }
            == {(2, f"{scene.name}-second"), (2, f"{scene.name}-third")}
        ),
        timeout=40,
        seen=lambda: json.dumps([scene.status(name) for name in ("one", "two")], indent=1),
    )
    assert second
    assert third
    for name in ("one", "two"):
        assert scene.status(name)["disruptions"] == 1
        assert scene.status(name)["failures"] == 0
    state = scene.pool_says("best", "counted", lambda s: s.get("interruptions", {}).get("lastHour") == 2)
    assert state["interruptions"]["lastDay"] == 2
    assert float(state["interruptions"]["ratePerNodeHour"]) > 0.1


def test_an_autoscaled_pool_gets_pods_without_nodes_and_gives_them_back_whole(scene: Scene) -> None:
    scene.pool("auto", provisioning="Autoscaled")
    scene.job("gang", "auto", "static", replicas=2, spec={"provisionTimeoutSeconds": 8})
    scene.opens("gang", "auto")
    made = jobs.condition(scene.status("gang"), "CapacityAvailable")
    assert (made["status"], made["reason"]) == ("True", "Provisioning")
    scene.pool("static", 2)
    scene.opens("gang", "static", attempt=2)
    assert [each["pool"] for each in scene.status("gang")["demotedPools"]] == [f"{scene.name}-auto"]
    left = [each["metadata"]["name"] for each in pods(scene.namespace, f"{scene.name}-gang")]
    assert not [name for name in left if "-gang-1-" in name], "all of them were given back"


def holders(scene: Scene) -> list[Json]:
    """The pods that keep nodes of pool `a` warm."""
    begin = f"{scene.name}-a-headroom-"
    return [each for each in get("pods", "-n", NAMESPACE) if each["metadata"]["name"].startswith(begin)]


def test_a_node_is_kept_warm_given_up_and_kept_again(scene: Scene) -> None:
    nodes = scene.pool("a", 2, provisioning="Autoscaled", headroom={"nodes": 1})
    said = scene.pool_says("a", "a node is warm", lambda s: s.get("headroom") == {"nodes": 1, "warm": 1})
    assert condition(said, "Headroom")["reason"] == "HeadroomWarm"
    assert said["gpus"] == {"total": 8, "free": 8}, "what is held for jobs is free for them"
    (holder,) = holders(scene)
    assert holder["spec"]["priority"] < 0
    assert holder["spec"]["nodeName"] in nodes
    scene.job("whole", "a", replicas=2)
    scene.opens("whole", "a")
    scene.end("whole")
    # The scheduler has it make room for a pod that needs the nodes.
    for number in range(2):
        limits = {"nvidia.com/gpu": "4"}
        made = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{scene.name}-needs{number}", "namespace": scene.namespace},
            "spec": {
                "nodeSelector": {"spot.training/pool": f"{scene.name}-a"},
                "containers": [
                    {"name": "main", "image": "registry.invalid/none", "resources": {"limits": limits}}
                ],
                "terminationGracePeriodSeconds": 0,
            },
        }
        done("create", "-f", "-", stdin=json.dumps(made))
    uid = holder["metadata"]["uid"]

    def pushed_away() -> bool:
        return any("deletionTimestamp" in each["metadata"] for each in holders(scene))

    wait_until("its deletion", pushed_away, timeout=40, seen=lambda: json.dumps(holders(scene), indent=1))
    # No kubelet is there to end it.
    done("-n", NAMESPACE, "delete", "pod", holder["metadata"]["name"], "--force", "--grace-period=0")
    scene.pool_says("a", "none is warm", lambda s: s.get("headroom") == {"nodes": 1, "warm": 0})

    def made_anew() -> bool:
        return [each["metadata"]["uid"] != uid for each in holders(scene)] == [True]

    # Not the status alone: with the one pushed away none had been warm before, either.
    wait_until(
        "another in its place", made_anew, timeout=40, seen=lambda: json.dumps(holders(scene), indent=1)
    )
    kubectl("delete", "spotpool", f"{scene.name}-a")
    wait_until(
        "the pod going with the pool",
        lambda: holders(scene) == [],
        timeout=60,
        seen=lambda: json.dumps(holders(scene), indent=1),
    )
    for number in range(2):
        kubectl("-n", scene.namespace, "delete", "pod", f"{scene.name}-needs{number}", "--force")


def test_the_breaker_closes_again(breaker: Breaker) -> None:
    breaker.scene.opens("one", "a", timeout=120)
    closed = breaker.scene.pool_says(
        "a", "closed", lambda s: condition(s, "BreakerOpen").get("status") == "False"
    )
    assert closed["interruptions"]["lastHour"] == 1
