"""The main story on real nodes: a node is reclaimed, the job goes on elsewhere from its checkpoint."""

import functools

from tests.kit import jobs, layout, nodes
from tests.kit.guest_agent import control
from tests.kit.kube import get, kubectl
from tests.kit.shell import wait_until

STEPS = 120
SAVE_EVERY = 30


def train(
    name: str, *, pace: float = 0.1, replicas: int = 1, gpus: int = 2, pools: list[str] | None = None
) -> None:
    """Start the example on a fresh claim."""
    jobs.remove(name)
    jobs.fresh_claim(name)
    jobs.start(
        jobs.torch_job(
            name,
            pools=pools or ["spot-a", "spot-b"],
            steps=STEPS,
            seconds_per_step=pace,
            save_every=SAVE_EVERY,
            replicas=replicas,
            gpus=gpus,
            recovery={"nodeLostAfterSeconds": 5},
        )
    )


@functools.cache
def undisturbed_weights(replicas: int) -> str:
    """SHA-256 of the final weights of a run that nothing disturbs."""
    name = f"calm-{replicas}"
    train(name, pace=0.0, replicas=replicas, pools=["spot-b"])
    state = jobs.wait_finished(name)
    assert state["phase"] == "Succeeded", jobs.describe(name)
    return str(state["extras"]["digest"])


def test_a_reclaimed_node_costs_no_step() -> None:
    expected = undisturbed_weights(1)
    train("reclaimed")
    jobs.wait_trained("reclaimed", 1, 35)
    left = jobs.node_of("reclaimed", 1)
    control.reclaim(left, 30)
    jobs.wait_running("reclaimed", attempt=2)
    assert jobs.node_of("reclaimed", 2) != left
    state = jobs.wait_finished("reclaimed")

    assert state["phase"] == "Succeeded", jobs.describe("reclaimed")
    assert (state["disruptions"], state["failures"]) == (1, 0)
    assert state["extras"]["digest"] == expected
    (story,) = state["timeline"]
    assert story["reason"] == "Reclaimed"
    assert story["node"] == left
    assert story["savedStep"] == story["reachedStep"] == story["resumedStep"] >= 35
    order = ["noticedAt", "cordonedAt", "stoppedAt", "endedAt", "deadline"]
    times = [story[field] for field in order]
    assert times == sorted(times), dict(zip(order, times, strict=True))
    told = jobs.events("reclaimed")
    wanted = [
        "AttemptStarted",
        "Running",
        "Reclaimed",
        "CheckpointSaved",
        "AttemptEnded",
        "AttemptStarted",
        "Completed",
    ]
    assert [reason for reason in wanted if reason not in told] == [], told
    table = kubectl("get", "spottrainingjobs", "reclaimed")
    columns = ["NAME", "PHASE", "POOL", "READY", "STEP", "DISRUPTIONS", "SPENT", "AGE"]
    assert table.splitlines()[0].split() == columns
    assert table.splitlines()[1].split()[:6] == [
        "reclaimed",
        "Succeeded",
        state["current"]["pool"],
        "0/1",
        "120",
        "1",
    ]


def test_a_gang_of_which_one_node_is_reclaimed_stops_and_resumes_whole() -> None:
    expected = undisturbed_weights(2)
    train("gang", replicas=2, gpus=3, pools=["spot-any"])
    jobs.wait_trained("gang", 1, 35)
    first = {jobs.node_of("gang", 1, index) for index in (0, 1)}
    assert len(first) == 2, first
    left = jobs.node_of("gang", 1, 1)
    control.reclaim(left, 30)
    jobs.wait_running("gang", attempt=2)
    assert left not in {jobs.node_of("gang", 2, index) for index in (0, 1)}
    state = jobs.wait_finished("gang")

    assert state["phase"] == "Succeeded", jobs.describe("gang")
    assert (state["disruptions"], state["failures"]) == (1, 0)
    assert state["extras"]["digest"] == expected
    (story,) = state["timeline"]
    assert story["savedStep"] == story["reachedStep"] == story["resumedStep"] >= 35


def test_a_node_that_vanishes_without_notice_costs_only_the_steps_since_the_last_save() -> None:
    expected = undisturbed_weights(1)
    train("vanished", pace=0.15)
    jobs.wait_trained("vanished", 1, 50)
    left = jobs.node_of("vanished", 1)
    nodes.kill_node(left)
    jobs.wait_running("vanished", attempt=2)
    state = jobs.wait_finished("vanished")

    assert state["phase"] == "Succeeded", jobs.describe("vanished")
    assert (state["disruptions"], state["failures"]) == (1, 0)
    assert state["extras"]["digest"] == expected
    (story,) = state["timeline"]
    assert story["reason"] == "NodeLost"
    # Killed between 50 and the end: what counts is the last whole periodic save, never a torn one.
    assert story["resumedStep"] in (30, 60, 90), story
    assert "passed over" not in jobs.logs("vanished", 2)


def test_a_withdrawn_notice_gives_the_node_back_and_the_stop_stands() -> None:
    train("withdrawn")
    jobs.wait_trained("withdrawn", 1, 10)
    left = jobs.node_of("withdrawn", 1)
    control.reclaim(left, 60)
    jobs.wait_for("withdrawn", "told to stop", lambda s: len(s.get("timeline", [])) == 1)
    control.withdraw(left)

    def given_back() -> bool:
        node = get(f"node/{left}")[0]
        taints = [taint["key"] for taint in node["spec"].get("taints", [])]
        ours = [key for key in node["metadata"].get("annotations", {}) if key.startswith("spot.training/")]
        return not node["spec"].get("unschedulable") and "spot.training/reclaim" not in taints and not ours

    wait_until(f"{left} given back", given_back, timeout=60, seen=lambda: nodes.describe([left]))
    state = jobs.wait_finished("withdrawn")
    assert state["phase"] == "Succeeded", jobs.describe("withdrawn")
    assert (state["disruptions"], state["failures"], state["current"]["attempt"]) == (1, 0, 2)


def test_the_agent_runs_on_spot_nodes_only_and_the_operator_on_none() -> None:
    spot = {worker.name for worker in layout.WORKERS if worker.capacity_type == "spot"}
    pods = get("pods", "-n", "spot-training", "-l", "app.kubernetes.io/name=spot-training-operator")
    where: dict[str, set[str]] = {}
    for pod in pods:
        where.setdefault(pod["metadata"]["labels"]["app.kubernetes.io/component"], set()).add(
            pod["spec"]["nodeName"]
        )
    assert where["agent"] == spot
    assert not where["operator"] & spot
