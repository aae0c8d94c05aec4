"""Faults of the program, of users and of our own parts, on real pods."""

from typing import Any

import pytest

from tests.kit import install, jobs
from tests.kit.guest_agent import control
from tests.kit.kube import get, kubectl
from tests.kit.shell import wait_until

FOREVER = jobs.FOREVER


def start(name: str, script: str, **spec: Any) -> None:
    jobs.remove(name)
    jobs.fresh_claim(name)
    jobs.start(jobs.shell_job(name, script, **spec))


def kill_pods(component: str, node: str | None = None) -> None:
    """Kill pods of the operator or of the agent, at once, as a crash would."""
    selector = f"app.kubernetes.io/component={component}"
    words = ["--field-selector", f"spec.nodeName={node}"] if node else []
    kubectl(
        "-n",
        install.NAMESPACE,
        "delete",
        "pod",
        "-l",
        selector,
        *words,
        "--grace-period=0",
        "--force",
        "--wait=false",
    )


def test_failures_of_the_program_are_counted_and_limited() -> None:
    start("fails", "exit 3", recovery={"maxFailures": 1, "backoff": {"initialSeconds": 1, "maxSeconds": 1}})
    state = jobs.wait_finished("fails")
    assert state["phase"] == "Failed", jobs.describe("fails")
    assert (state["failures"], state["disruptions"], state["current"]["attempt"]) == (2, 0, 2)
    failed = jobs.condition(state, "Failed")
    assert failed["reason"] == "MaxFailures"
    assert "exit code 3" in failed["message"]
    # The last pod is left for its logs.
    last = get("pod/fails-2-0")[0]["status"]["containerStatuses"][0]
    assert last["state"]["terminated"]["exitCode"] == 3, last


def test_a_failure_in_a_gang_is_judged_by_the_leases() -> None:
    dies_once = "if [ $RANK = 1 ] && [ $SPOT_ATTEMPT = 1 ]; then sleep 2; exit 7; fi"
    script = f"{dies_once}; [ $SPOT_ATTEMPT = 2 ] || {{ {FOREVER}; }}"
    start(
        "judged",
        script,
        replicas=2,
        gpus=3,
        pools=["spot-any"],
        recovery={"backoff": {"initialSeconds": 1, "maxSeconds": 1}},
    )
    state = jobs.wait_finished("judged")
    assert state["phase"] == "Succeeded", jobs.describe("judged")
    assert (state["failures"], state["disruptions"], state["current"]["attempt"]) == (1, 0, 2)
    jobs.wait_told("judged", "RankExited")


def test_a_pod_that_a_user_deletes_is_a_disruption() -> None:
    start("deleted", f"[ $SPOT_ATTEMPT = 2 ] || {{ {FOREVER}; }}")
    jobs.wait_running("deleted")
    kubectl("delete", "pod", "deleted-1-0", "--wait=false")
    state = jobs.wait_finished("deleted")
    assert state["phase"] == "Succeeded", jobs.describe("deleted")
    assert (state["failures"], state["disruptions"]) == (0, 1)
    assert state["timeline"][0]["reason"] == "PodDeleted"


def test_suspend_saves_and_resume_goes_on() -> None:
    jobs.fresh_claim("paused")
    jobs.start(
        jobs.torch_job(
            "paused", pools=["spot-a"], steps=100, seconds_per_step=0.1, save_every=1000, hurry_from=2
        )
    )
    jobs.wait_trained("paused", 1, 20)
    kubectl("patch", "stj", "paused", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    state = jobs.wait_for(
        "paused", "suspended", lambda s: s["phase"] == "Suspended" and "end" in s["current"]
    )
    assert not [pod for pod in jobs.pods("paused") if pod["status"]["phase"] == "Running"]
    assert state["checkpoint"]["step"] >= 20
    assert jobs.condition(state, "Suspended")["status"] == "True"
    kubectl("patch", "stj", "paused", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    state = jobs.wait_finished("paused")
    assert state["phase"] == "Succeeded", jobs.describe("paused")
    assert (state["failures"], state["disruptions"], state["current"]["attempt"]) == (0, 0, 2)


@pytest.mark.alone
def test_the_operator_killed_in_the_middle_of_a_recovery_changes_nothing() -> None:
    jobs.fresh_claim("orphan")
    jobs.start(
        jobs.torch_job(
            "orphan",
            pools=["spot-a", "spot-b"],
            steps=80,
            seconds_per_step=0.1,
            save_every=30,
            hurry_from=2,
        )
    )
    jobs.wait_trained("orphan", 1, 20)
    left = jobs.node_of("orphan", 1)
    kill_pods("operator")
    control.reclaim(left, 40)
    state = jobs.wait_finished("orphan")
    assert state["phase"] == "Succeeded", jobs.describe("orphan")
    assert (state["failures"], state["disruptions"], state["current"]["attempt"]) == (0, 1, 2)
    log = jobs.logs("orphan", 2)
    assert "resumed from step" in log, log
    assert jobs.node_of("orphan", 2) != left


def test_an_agent_killed_in_the_middle_of_a_drain_finishes_it() -> None:
    slow = "trap 'sleep 8; exit 143' TERM; [ $SPOT_ATTEMPT = 2 ] || while :; do sleep 0.1; done"
    start("slow", slow)
    jobs.wait_running("slow")
    left = jobs.node_of("slow", 1)
    control.reclaim(left, 40)
    wait_until(
        f"{left} marked",
        lambda: "spot.training/notice-id" in get(f"node/{left}")[0]["metadata"].get("annotations", {}),
        timeout=20,
        seen=lambda: kubectl("describe", "node", left),
    )
    kill_pods("agent", left)

    def drained() -> bool:
        conditions = get(f"node/{left}")[0]["status"]["conditions"]
        return any(each["type"] == "Drained" and each["status"] == "True" for each in conditions)

    wait_until(f"{left} drained", drained, timeout=60, seen=lambda: kubectl("describe", "node", left))
    state = jobs.wait_finished("slow")
    assert state["phase"] == "Succeeded", jobs.describe("slow")
    assert (state["failures"], state["disruptions"]) == (0, 1)


def test_a_deleted_job_leaves_nothing_behind() -> None:
    start("gone", FOREVER, replicas=2, gpus=1)
    jobs.wait_running("gone")
    jobs.remove("gone")
    wait_until(
        "the service gone",
        lambda: not get("service", "-l", "spot.training/job=gone"),
        timeout=30,
        seen=lambda: kubectl("get", "all"),
    )
    assert [claim["metadata"]["name"] for claim in get("pvc") if claim["metadata"]["name"] == "gone"] == [
        "gone"
    ]
