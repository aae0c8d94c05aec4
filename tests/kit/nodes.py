"""The cluster's nodes as a test handles them: taking one away, giving it back, bringing all into order.

A node is a container. Killing it is what losing a machine is like: nothing on it is told. Pausing it is what a
network that fails, or a frozen machine, is like: it comes back with everything still running.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tests.kit import engine, layout, network, places
from tests.kit.kube import get, kubectl
from tests.kit.shell import succeeds, together, wait_until


def kill_node(name: str) -> None:
    """Take a node's machine away, without notice."""
    engine.docker("kill", name)


def pause_node(name: str) -> None:
    """Freeze everything on a node, kubelet too: to the cluster it is unreachable."""
    engine.docker("pause", name)


def unpause_node(name: str) -> None:
    """Let a paused node go on."""
    engine.docker("unpause", name)


def restore_node(name: str, timeout: float = 120) -> None:
    """Bring a killed, stopped or paused node back; returns when it is Ready, with its GPUs and its network.

    Where its Node object was deleted, kubelet makes it anew, with the labels and taints of its pool. What else tests
    did to a Node object that is still there (cordons, taints of theirs, other labels) is theirs to undo.
    """
    state = container_state(name)
    if state == "paused":
        unpause_node(name)
    if state in ("paused", "running"):
        if not kubectl("get", "node", name, "--ignore-not-found", "-o", "name"):
            engine.docker("exec", name, "systemctl", "restart", "kubelet")  # it registers only as it starts
    else:
        engine.docker("start", name)
        # Until kubelet has reported, the Node object still says what was true before the loss.
        wait_until(
            f"{name} reporting after its start",
            lambda: _has_reported_since_start(name),
            timeout=timeout,
            seen=lambda: describe([name]),
        )
    settle([name], timeout)


def settle(names: Iterable[str], timeout: float = 120) -> None:
    """Have these nodes Ready, all of the network in place, and the workers among them with their GPUs."""
    wanted = list(names)
    apply_network(wanted, timeout)
    started = {
        name: engine.docker("inspect", "--format", "{{.State.StartedAt}}", name)[:19] for name in wanted
    }
    wait_until(
        f"Ready nodes {' '.join(wanted)} with their system pods running",
        lambda: all(is_ready(node) for node in get("nodes", *wanted)) and _system_pods_run_since(started),
        timeout=timeout,
        seen=lambda: describe(wanted),
    )
    _have_services(wanted, timeout)
    together(*(lambda name=name: add_gpus(name) for name in wanted if name in layout.WORKER_NAMES))


def apply_network(names: Iterable[str] = layout.NODES, timeout: float = 120) -> None:
    """Where kind's own network is not there, make ours, as soon as each of `names` has its range of addresses."""
    if json.loads(places.CLUSTER_FILE.read_text())["has_network"]:
        return

    def ranges() -> dict[str, str]:
        nodes = {node["metadata"]["name"]: node["spec"].get("podCIDR") for node in get("nodes")}
        return {name: pod_range for name, pod_range in nodes.items() if pod_range and name in layout.NODES}

    wait_until(
        "a range of pod addresses for each node",
        lambda: set(names) <= set(ranges()),
        timeout=timeout,
        seen=lambda: str(ranges()),
    )
    network.apply(ranges())


def add_gpus(name: str) -> None:
    """Give a node its GPUs, which are none: the scheduler and kubelet count them, no device stands behind.

    A kubelet that starts sets extended resources to 0, so they are given again after each start.
    """
    wanted = str(layout.GPUS_PER_WORKER)

    def has_gpus() -> bool:
        status = get(f"node/{name}")[0]["status"]
        return all(status[where].get(layout.GPU_RESOURCE) == wanted for where in ("capacity", "allocatable"))

    def patched() -> bool:
        if has_gpus():
            return True
        key = layout.GPU_RESOURCE.replace("/", "~1")
        patch = [
            {"op": "add", "path": f"/status/{where}/{key}", "value": wanted}
            for where in ("capacity", "allocatable")
        ]
        kubectl("patch", "node", name, "--subresource=status", "--type=json", "-p", json.dumps(patch))
        return False

    wait_until(f"{wanted} GPUs on {name}", patched, timeout=30, seen=lambda: describe([name]))


def _have_services(names: Sequence[str], timeout: float) -> None:
    """Have these nodes reach services; start the proxies anew of those that do not.

    kube-proxy writes all of its rules once more after an hour. In some sandboxes the kernel then answers it with an
    error, and the addresses of services are gone from the rules: connections that are open last, new ones are refused.
    """
    address = get("service/kubernetes")[0]["spec"]["clusterIP"]

    def reached(name: str) -> bool:
        knock = f"timeout 3 bash -c '</dev/tcp/{address}/443'"
        return succeeds([engine.client(), "exec", name, "bash", "-c", knock])

    def lacking() -> list[str]:
        return [name for name in names if not reached(name)]

    try:
        wait_until("services", lambda: not lacking(), timeout=10, seen=lambda: "")
    except TimeoutError:
        for name in lacking():
            kubectl(
                *("delete", "pod", "-n", "kube-system", "-l", "k8s-app=kube-proxy"),
                *("--field-selector", f"spec.nodeName={name}", "--wait=true"),
            )
        wait_until(
            f"services reached from {' '.join(names)}",
            lambda: not lacking(),
            timeout=timeout,
            seen=lambda: f"not from {lacking()}\n{describe(names)}",
        )


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node object says Ready and nothing keeps pods off it that kubelet or the node's loss put there."""
    transient = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    taints = [taint["key"] for taint in node["spec"].get("taints", [])]
    conditions = {
        condition["type"]: condition["status"] for condition in node["status"].get("conditions", [])
    }
    return conditions.get("Ready") == "True" and not any(taint in transient for taint in taints)


def container_state(name: str) -> str:
    """Docker's word for a node's container: running, paused, exited …; `absent` where there is none."""
    rows = engine.docker("ps", "-a", "--filter", f"name=^{name}$", "--format", "{{.State}}")
    return rows.strip() or "absent"


def container_states() -> dict[str, str]:
    """Docker's words for all containers that there are, by name."""
    rows = engine.docker("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines()
    return dict(row.split(" ", 1) for row in rows)


def describe(names: Iterable[str]) -> str:
    """What a person would look at when a node does not do as it should."""
    containers = [f"{name}: container {container_state(name)}" for name in names]
    pods = kubectl("get", "pods", "-n", "kube-system", "-o", "wide")
    return "\n".join([*containers, kubectl("get", "nodes", "-o", "wide"), pods])


def _has_reported_since_start(name: str) -> bool:
    started = engine.docker("inspect", "--format", "{{.State.StartedAt}}", name)[:19]
    conditions = get(f"node/{name}")[0]["status"].get("conditions", [])
    return any(row["type"] == "Ready" and row["lastHeartbeatTime"][:19] > started for row in conditions)


def _system_pods_run_since(started: dict[str, str]) -> bool:
    """Whether each node's kube-proxy (and kindnet, where there is one) runs, and was started after its node.

    Without them a node is Ready and its pods cannot reach any service. Until kubelet has looked, their status is
    that of before the node's loss: hence the comparison of times, which are all in UTC.
    """
    pods = [
        pod
        for pod in get("pods", "-n", "kube-system")
        if pod["metadata"].get("ownerReferences", [{}])[0].get("kind") == "DaemonSet"
        and pod["spec"].get("nodeName") in started
    ]
    running = [
        container.get("state", {}).get("running", {}).get("startedAt", "")[:19]
        >= started[pod["spec"]["nodeName"]]
        for pod in pods
        for container in pod["status"].get("containerStatuses", [{}])
    ]
    return all(running) and {pod["spec"]["nodeName"] for pod in pods} == set(started)
