"""The main story on real nodes: a node is reclaimed, the job goes on elsewhere from its checkpoint."""

import functools

from tests.kit import jobs, layout, nodes, places
from tests.kit.guest_agent import control
from tests.kit.kube import get, kubectl
from tests.kit.shell import wait_until

STEPS = 120
SAVE_EVERY = 30


def train(
    name: str,
    *,
    pace: float = 0.1,
    replicas: int = 1,
    gpus: int = 2,
    pools: list[str] | None = None,
    hurry_from: int = 2,
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
            hurry_from=hurry_from,
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
    wanted = [
        "AttemptStarted",
        "Running",
        "Reclaimed",
        "CheckpointSaved",
        "AttemptEnded",
        "AttemptStarted",
        "Completed",
    ]
    jobs.wait_told("reclaimed", *wanted)
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


def torn_gang() -> None:
    """A gang on the two nodes of a pool; each rank fails when its claim says so, as of a peer that does not answer."""
    jobs.remove("torn")
    jobs.fresh_claim("torn")
    script = "trap 'exit 143' TERM; until [ -e /mnt/checkpoint/peer-lost ]; do sleep 0.1; done; exit 1"
    recovery = {"nodeLostAfterSeconds": 5, "maxDisruptions": 0}
    made = jobs.shell_job("torn", script, replicas=2, gpus=1, pools=["spot-a"], recovery=recovery)
    made["spec"]["checkpoint"]["writer"] = "Library"
    apart = {
        "labelSelector": {"matchLabels": {"spot.training/job": "torn"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    weighted = [{"weight": 100, "podAffinityTerm": apart}]
    affinity = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}
    made["spec"]["template"]["spec"]["affinity"] = affinity
    jobs.start(made)


def lose_a_peer_of_the_torn_gang() -> None:
    """The other rank has just lost its machine, and this one ends of it: nobody can say yet whose doing that was."""
    assert {*layout.WORKER_NAMES[:2]} == {jobs.node_of("torn", 1, index) for index in (0, 1)}
    (places.SHARED / "default-torn" / "peer-lost").touch()
    jobs.wait_told("torn", "RankExited")
    state = jobs.status("torn")
    assert (state["disruptions"], state["failures"]) == (0, 0), jobs.describe("torn")


def check_the_torn_gang() -> None:
    """What the survivor's exit was is judged when the cluster misses the node; one disruption ends this job."""
    state = jobs.wait_finished("torn")
    assert (state["disruptions"], state["failures"]) == (1, 0), jobs.describe("torn")
    assert jobs.condition(state, "Failed")["reason"] == "MaxDisruptions"
    (story,) = state["timeline"]
    assert story["reason"] == "NodeLost"


def test_a_silent_node_costs_the_steps_since_the_last_save_and_does_no_harm_when_it_is_back() -> None:
    """Two nodes at once, for the cluster takes its time to miss them: one is dead, the other is frozen."""
    expected = undisturbed_weights(1)
    torn_gang()
    jobs.wait_running("torn")
    train("vanished", pace=0.15, pools=["spot-a"])
    train("frozen", pace=0.4, pools=["spot-b", "spot-a"], hurry_from=3)
    jobs.wait_trained("vanished", 1, 50)
    dead = jobs.node_of("vanished", 1)
    nodes.kill_node(dead)
    lose_a_peer_of_the_torn_gang()
    jobs.wait_trained("frozen", 1, 35)
    frozen = jobs.node_of("frozen", 1)
    assert frozen != dead
    nodes.pause_node(frozen)
    # Both go on elsewhere; what the frozen one's successor may read is settled once it trains.
    jobs.wait_running("vanished", attempt=2)
    check_the_torn_gang()
    jobs.wait_trained("frozen", 2, 40)
    before = jobs.saved_steps("frozen", 1)
    assert "resumed from step 30 (attempt 2, checkpoint of attempt 1)" in jobs.logs("frozen", 2)

    nodes.unpause_node(frozen)
    late = _steps_saved_until_ended("frozen", attempt=1) - before
    assert late, f"attempt 1 has written nothing since its node is back, only {before}: no fence was needed"
    # What it wrote is whole, and newer than what the second attempt began with: the third must not take it.
    state = jobs.status("frozen")
    assert (state["phase"], state["current"]["attempt"]) == ("Running", 2), jobs.describe("frozen")
    kubectl("delete", "pod", "frozen-2-0", "--wait=false")
    _finished_like(expected, "vanished", disruptions=1)
    (story,) = jobs.status("vanished")["timeline"]
    assert story["reason"] == "NodeLost"
    # Killed between 50 and the end: what counts is the last whole periodic save, never a torn one.
    assert story["resumedStep"] in (30, 60, 90), story
    assert "passed over" not in jobs.logs("vanished", 2)

    _finished_like(expected, "frozen", disruptions=2)
    lost, deleted = jobs.status("frozen")["timeline"]
    assert (lost["reason"], lost["node"], deleted["reason"]) == ("NodeLost", frozen, "PodDeleted")
    log = jobs.logs("frozen", 3)
    assert f"resumed from step {deleted['savedStep']} (attempt 3, checkpoint of attempt 2)" in log, log
    taken = jobs.accepted("frozen", 3)
    assert (2, deleted["savedStep"]) in taken, taken
    assert not taken & {(1, step) for step in late}, "what attempt 1 wrote after attempt 2 had begun"


def _steps_saved_until_ended(name: str, attempt: int) -> set[int]:
    """What the attempt's directory has held until its pod had ended: a newer attempt may remove it at any time."""
    seen: set[int] = set()

    def ended() -> bool:
        seen.update(jobs.saved_steps(name, attempt))
        return not get("pods", "-l", f"spot.training/job={name},spot.training/attempt={attempt}")

    wait_until(
        f"the pod of attempt {attempt} of {name} gone",
        ended,
        timeout=60,
        every=0.2,
        seen=lambda: f"saved: {seen}\n{jobs.describe(name)}",
    )
    return seen


def _finished_like(digest: str, name: str, disruptions: int) -> None:
    """The job has come to the weights of a run that nothing disturbs, and nothing has failed."""
    state = jobs.wait_finished(name)
    assert state["phase"] == "Succeeded", jobs.describe(name)
    assert (state["disruptions"], state["failures"]) == (disruptions, 0)
    assert state["extras"]["digest"] == digest


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
    spot = {worker.name for worker in layout.WORKERS if worker.is_spot}
    pods = get("pods", "-n", "spot-training", "-l", "app.kubernetes.io/name=spot-training-operator")
    where: dict[str, set[str]] = {}
    for pod in pods:
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        where.setdefault(component, set()).add(pod["spec"].get("nodeName", ""))
    # Other tests' simulated nodes, of which some are spot, come and go.
    assert where["agent"] & {*layout.NODES} == spot
    assert not where["operator"] & spot
