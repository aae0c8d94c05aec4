"""What befalls nodes without our agent's doing: the marks of other systems, evictions, restarts, death."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from spot_training.api.times import parse_time
from tests.kit import jobs, layout, nodes
from tests.kit.kube import get, kubectl

Json = dict[str, Any]

MARKS: Final = {
    "ToBeDeletedByClusterAutoscaler": "ClusterAutoscaler",
    "cloud.google.com/impending-node-termination": "GKE",
    "aws-node-termination-handler/spot-itn": "NodeTerminationHandler",
    "node.cloudprovider.kubernetes.io/shutdown": "CloudShutdown",
}
"""Taints, and by whose name the job tells of them."""
EVICTING: Final = "test.example.com/out"
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
ONCE: Final = f'[ "$SPOT_ATTEMPT" = 1 ] || exit 0; {jobs.FOREVER}'
RECOVERY: Final = {"backoff": {"initialSeconds": 1, "maxSeconds": 1}}


def start(name: str, script: str, node: str | None = None, gpus: int = 0, **spec: Any) -> None:
    """A job of one pod, on any spot node or on this one; nothing but its own node's taints can move it."""
    jobs.fresh_claim(name)
    made = jobs.shell_job(name, script, pools=["spot-any"], recovery=RECOVERY, **spec)
    template = made["spec"]["template"]["spec"]
    # A kubelet that starts has no GPUs for a moment, and would refuse a pod that it had before.
    template["containers"][0]["resources"] = {"limits": {layout.GPU_RESOURCE: gpus}} if gpus else {}
    if node is not None:
        template["nodeSelector"] = {"kubernetes.io/hostname": node}
        template["tolerations"] = [{"key": EVICTING, "operator": "Exists"}]
    jobs.start(made)


@contextmanager
def tainted(node: str, key: str, effect: str) -> Iterator[None]:
    """The node bears the taint, and then no more."""
    kubectl("taint", "node", node, f"{key}=test:{effect}", "--overwrite")
    try:
        yield
    finally:
        kubectl("taint", "node", node, f"{key}:{effect}-")


def check(name: str, *reasons: str) -> None:
    """The job has ended well, after one disruption with one of these reasons."""
    state = jobs.wait_finished(name)
    assert state["phase"] == "Succeeded", jobs.describe(name)
    assert (state["disruptions"], state["failures"]) == (1, 0), jobs.describe(name)
    assert state["timeline"][0]["reason"] in reasons, state["timeline"]


def test_marks_of_other_systems_are_notices() -> None:
    start("marked", jobs.FOREVER, gpus=1)
    for attempt, (key, source) in enumerate(MARKS.items(), start=1):
        jobs.wait_running("marked", attempt)
        node = jobs.node_of("marked", attempt)
        with tainted(node, key, "NoSchedule"):
            state = jobs.wait_running("marked", attempt + 1)
            assert jobs.node_of("marked", attempt + 1) != node
        entry = state["timeline"][-1]
        assert (entry["attempt"], entry["reason"], entry["node"]) == (attempt, "Reclaimed", node)
        assert entry["noticeId"] == key
        told = get("events", "--field-selector", "involvedObject.name=marked,reason=Reclaimed")
        assert any(f"({source} notice)" in each["message"] for each in told), jobs.describe("marked")
        assert (state["disruptions"], state["failures"]) == (attempt, 0)


def test_nodes_evict_restart_are_replaced_and_are_given_up() -> None:
    """All with a program that cannot be fenced: the next attempt needs proof that the one before has ended."""
    given_up, restarted, replaced = (each.name for each in layout.WORKERS if each.is_spot)
    start("given-up", ONCE, given_up)
    start("restarted", ONCE, restarted)
    start("replaced", ONCE, replaced)
    start("tainted", ONCE, gpus=1)
    for name in ("given-up", "restarted", "replaced", "tainted"):
        jobs.wait_running(name)

    node = jobs.node_of("tainted", 1)
    with tainted(node, EVICTING, "NoExecute"):
        check("tainted", "TaintEviction")
        assert jobs.node_of("tainted", 2) != node

    nodes.kill_node(restarted)
    nodes.restore_node(restarted)
    nodes.kill_node(given_up)
    nodes.kill_node(replaced)
    uid = get(f"node/{replaced}")[0]["metadata"]["uid"]
    kubectl("delete", "node", replaced, "--wait=true")
    try:
        # Nobody has verified what became of that machine: the stop is written, the attempt is not over.
        state = jobs.wait_for("replaced", "told to stop", lambda s: "stop" in s["current"])
        assert state["current"]["stop"]["cause"] == "NodeLost", jobs.describe("replaced")
        with tainted(given_up, OUT_OF_SERVICE, "NoExecute"):
            # Whether the taint's eviction or the taint itself is seen first is a matter of milliseconds.
            state = jobs.wait_for("given-up", "its attempt over", lambda s: "end" in s["current"])
            assert state["current"]["end"]["reason"] in ("NodeLost", "TaintEviction"), jobs.describe(
                "given-up"
            )
            assert nodes.container_state(given_up) == "exited"
        waiting = jobs.status("replaced")
        assert "end" not in waiting["current"], "it went on although the machine might have lived"
        assert "out-of-service" in jobs.condition(waiting, "Running")["message"]
    finally:
        nodes.restore_node(replaced)
        nodes.restore_node(given_up)
    assert get(f"node/{replaced}")[0]["metadata"]["uid"] != uid
    check("replaced", "NodeLost")
    check("given-up", "NodeLost", "TaintEviction")
    check("restarted", "NodeRestarted")
    lost = jobs.status("replaced")["timeline"][0]
    assert parse_time(lost["endedAt"]) > parse_time(lost["stoppedAt"])
