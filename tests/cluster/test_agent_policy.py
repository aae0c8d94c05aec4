"""A stolen agent's token: what it can do to its own node, and that it can do nothing else.

The token is a real one, bound to a running agent's pod, as the kubelet would project it.
"""

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pytest

from spot_training.cluster.client import (
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    ApiError,
    Client,
    core_path,
    node_path,
)
from tests.kit import install, layout, reach
from tests.kit.kube import get, kubectl

# An agent's token is used all along, and its node is marked and cordoned.
pytestmark = pytest.mark.spot_nodes

Request = tuple[str, str, Any, str]

OWN: Final = layout.WORKERS[0].name
OTHER: Final = layout.WORKERS[1].name


@pytest.fixture(scope="module")
def token() -> str:
    """The token of the agent on the node OWN."""
    agents = get("pods", "-n", install.NAMESPACE, "-l", "app.kubernetes.io/component=agent")
    pod = next(pod for pod in agents if pod["spec"]["nodeName"] == OWN)
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod['metadata']['name']}"]
    account = pod["spec"]["serviceAccountName"]
    return kubectl("create", "token", account, "-n", install.NAMESPACE, *bound).strip()


@pytest.fixture
def sleepers() -> Iterator[dict[str, str]]:
    """A pod on OWN and one on OTHER, by node; they never start, which no request here depends on."""
    names = {node: f"policy-{secrets.token_hex(3)}" for node in (OWN, OTHER)}
    for node, name in names.items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    {"name": "main", "image": install.OPERATOR_IMAGE, "command": ["sleep", "600"]}
                ],
            },
        }
        kubectl("create", "-f", "-", stdin=json.dumps(pod))
    yield names
    for name in names.values():
        kubectl("delete", "pod", name, "--ignore-not-found", "--wait=false", "--grace-period=1")


def as_agent(token: str, method: str, path: str, body: Any = None, kind: str = MERGE_PATCH) -> str:
    """One request with nothing but the token; `done`, or the API server's words."""

    async def ask() -> str:
        async with Client(reach.bearer(token)) as client:
            try:
                await client.request(method, path, body, content_type=kind)
            except ApiError as error:
                return f"refused: {error}"
            return "done"

    return asyncio.run(ask())


def patch(node: str, body: Any) -> Request:
    return "PATCH", node_path(node), body, MERGE_PATCH


def patch_status(node: str, status: Any) -> Request:
    # Strategic, as the agent does: conditions are merged by their type.
    return "PATCH", node_path(node, "status"), {"status": status}, STRATEGIC_PATCH


DRAIN: Final = {"type": "DrainInProgress", "status": "False", "reason": "NoNotice", "message": "policy test"}
READY: Final = {"type": "Ready", "status": "False"}

ALLOWED: Final[dict[str, Request]] = {
    "mark": patch(OWN, {"metadata": {"annotations": {"spot.training/notice-id": "policy-test"}}}),
    "unmark": patch(OWN, {"metadata": {"annotations": {"spot.training/notice-id": None}}}),
    "cordon": patch(OWN, {"spec": {"unschedulable": True}}),
    "uncordon": patch(OWN, {"spec": {"unschedulable": None}}),
    "condition": patch_status(OWN, {"conditions": [DRAIN]}),
}

REFUSED: Final[dict[str, tuple[Request, str]]] = {
    "cordon another node": (patch(OTHER, {"spec": {"unschedulable": True}}), "may change nothing on node"),
    "mark another node": (
        patch(OTHER, {"metadata": {"annotations": {"spot.training/notice-id": "x"}}}),
        "may change nothing on node",
    ),
    "relabel its own": (
        patch(OWN, {"metadata": {"labels": {"stolen": "yes"}}}),
        "cordon, taint and annotations",
    ),
    "annotate its own": (patch(OWN, {"metadata": {"annotations": {"stolen": "yes"}}}), "its own annotations"),
    "invent an annotation of ours": (
        patch(OWN, {"metadata": {"annotations": {"spot.training/else": "yes"}}}),
        "its own annotations",
    ),
    "untaint its own": (patch(OWN, {"spec": {"taints": []}}), "only the taint spot.training/reclaim"),
    "evict by the taint of a cordon": (
        patch(
            OWN, {"spec": {"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoExecute"}]}}
        ),
        "only the taint spot.training/reclaim",
    ),
    "taint as it likes": (
        patch(OWN, {"spec": {"taints": [{"key": "stolen", "effect": "NoExecute"}]}}),
        "only the taint spot.training/reclaim",
    ),
    "make its own NotReady": (
        patch_status(OWN, {"conditions": [READY]}),
        "only the conditions DrainInProgress and Drained",
    ),
    "give itself GPUs": (
        patch_status(OWN, {"allocatable": {"nvidia.com/gpu": "8"}}),
        "only the conditions DrainInProgress and Drained",
    ),
    "another node's status": (patch_status(OTHER, {"conditions": [DRAIN]}), "may change nothing on node"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_an_agent_can_do_its_work(token: str, what: str) -> None:
    said = as_agent(token, *ALLOWED[what])
    assert said == "done"


@pytest.mark.parametrize("what", REFUSED)
def test_an_agent_cannot(token: str, what: str) -> None:
    request, why = REFUSED[what]
    said = as_agent(token, *request)
    assert said.startswith("refused"), said
    assert "spot-training:" in said, said
    assert why in said, said


def test_an_agent_warns_with_a_soft_taint_of_ours_and_with_no_other(token: str) -> None:
    def change(*operations: dict[str, Any]) -> str:
        return as_agent(token, "PATCH", node_path(OWN), list(operations), JSON_PATCH)

    def taints() -> list[dict[str, str]]:
        found: list[dict[str, str]] = get(f"node/{OWN}")[0]["spec"]["taints"]
        return found

    ours = {"key": "spot.training/reclaim", "value": "rebalance", "effect": "PreferNoSchedule"}
    foreign = {"key": "stolen", "value": "rebalance", "effect": "PreferNoSchedule"}
    said = change({"op": "add", "path": "/spec/taints/-", "value": ours})
    assert said == "done"
    try:
        said = change({"op": "add", "path": "/spec/taints/-", "value": foreign})
        assert "only the taint spot.training/reclaim" in said, said
        said = change({"op": "replace", "path": "/spec/taints/0/effect", "value": "PreferNoSchedule"})
        assert "only the taint spot.training/reclaim" in said, said
        place = f"/spec/taints/{taints().index(ours)}"
        said = change({"op": "test", "path": place, "value": ours}, {"op": "remove", "path": place})
        assert said == "done"
        assert ours not in taints()
    finally:
        if ours in taints():
            kubectl("taint", "node", OWN, "spot.training/reclaim:PreferNoSchedule-")


def test_an_agent_deletes_pods_of_its_own_node_only(token: str, sleepers: dict[str, str]) -> None:
    said = as_agent(token, "DELETE", core_path("default", "pods", sleepers[OTHER]))
    assert said.startswith("refused"), said
    assert "may change nothing on node" in said, said
    said = as_agent(token, "DELETE", core_path("default", "pods", sleepers[OWN]))
    assert said == "done"


def test_an_agent_says_of_a_pod_only_that_it_is_a_disruptions_target(
    token: str, sleepers: dict[str, str]
) -> None:
    def told(pod: str, status: Any) -> str:
        return as_agent(
            token, "PATCH", core_path("default", "pods", pod, "status"), {"status": status}, STRATEGIC_PATCH
        )

    target = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "SpotReclamation"}]}
    said = told(sleepers[OTHER], target)
    assert "may change nothing on node" in said, said
    said = told(sleepers[OWN], {"phase": "Failed"})
    assert "only the condition DisruptionTarget" in said, said
    said = told(sleepers[OWN], target)
    assert said == "done"


def test_a_token_bound_to_no_pod_can_do_nothing() -> None:
    account = f"{install.RELEASE}-agent"
    unbound = kubectl("create", "token", account, "-n", install.NAMESPACE).strip()
    said = as_agent(unbound, *ALLOWED["cordon"])
    assert said.startswith("refused"), said
    assert "may change nothing on node" in said, said
