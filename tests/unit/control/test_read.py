"""From the API server's JSON to what the planner sees."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.api.times import format_time, parse_time
from spot_training.control.read import read_claim, read_job, read_node, read_pod, read_report
from spot_training.control.world import Exit, Report
from tests.unit.control.objects import Json, ended_pod, raw_job, raw_node, raw_pod, terminated

FIVE = parse_time("2026-04-08T05:00:00Z")


def test_a_running_pod_of_ours() -> None:
    pod = read_pod(raw_pod())
    assert (pod.job, pod.job_uid, pod.attempt, pod.index, pod.node) == ("job", "j-1", 1, 0, "a1")
    assert (pod.running, pod.ended, pod.exit, pod.deleting, pod.grace) == (True, False, None, False, 55)
    assert pod.started_at == FIVE + 3, "container 0 of the spec, wherever its status stands"
    assert pod.requests == {"nvidia.com/gpu": 3, "rdma/hca": 1, "cpu": 500, "memory": 1 << 30}


def test_somebody_elses_pod_only_uses_what_it_requests() -> None:
    raw = raw_pod()
    raw["metadata"]["ownerReferences"][0].update(kind="Job", apiVersion="batch/v1")
    pod = read_pod(raw)
    assert (pod.job_uid, pod.requests["nvidia.com/gpu"], pod.node) == ("", 3, "a1")


def test_a_group_that_only_begins_like_ours_is_not_ours() -> None:
    raw = raw_pod()
    raw["metadata"]["ownerReferences"][0]["apiVersion"] = "spot.training.example.com/v1"
    assert read_pod(raw).job_uid == ""


@pytest.mark.parametrize("text", ["²", "٣", "-1", "1.5", "", " 7", "9" * 5000])
def test_a_number_that_is_none_is_read_as_none(text: str) -> None:
    """int() raises for some of what isdigit() allows, and for what is too long."""
    raw = raw_pod()
    raw["metadata"]["annotations"] = {"spot.training/budget-seconds": text}
    raw["metadata"]["labels"]["spot.training/attempt"] = text
    assert (read_pod(raw).budget_seconds, read_pod(raw).attempt) == (None, 0)
    raw["metadata"]["annotations"]["spot.training/budget-seconds"] = "3600"
    assert read_pod(raw).budget_seconds == 3600


def test_an_ended_pod() -> None:
    pod = read_pod(ended_pod(1, '{"reason":"Failed","step":7}'))
    assert (pod.ended, pod.running, pod.exit) == (True, False, Exit(1, "Error", FIVE + 540))
    assert pod.report == Report(reason="Failed", step=7)


def test_failed_by_garbage_collection_while_its_container_may_still_run() -> None:
    pod = read_pod(raw_pod(phase="Failed"))
    assert (pod.ended, pod.exit) == (False, None)


def test_refused_by_its_node() -> None:
    pod = read_pod(raw_pod(phase="Failed", reason="OutOfcpu", containerStatuses=None))
    assert (pod.ended, pod.started_at, pod.status_reason) == (True, None, "OutOfcpu")


def test_kubelet_says_1970_of_what_it_could_not_start() -> None:
    pod = read_pod(
        ended_pod(
            128, reason="StartError", startedAt="1970-01-01T00:00:00Z", finishedAt="2026-04-08T05:00:04Z"
        )
    )
    assert (pod.started_at, pod.exit) == (None, Exit(128, "StartError", FIVE + 4))


def test_a_main_container_that_ended_before_its_sidecar() -> None:
    statuses = [{"name": "main", "state": terminated(0)}, {"name": "side", "state": {"running": {}}}]
    pod = read_pod(raw_pod(containerStatuses=statuses))
    assert (pod.ended, pod.exit) == (False, Exit(0, "Completed", FIVE + 540))


def test_a_pod_whose_native_sidecar_runs_has_not_ended() -> None:
    raw = ended_pod(0)
    raw["spec"]["initContainers"] = [{"name": "logs", "restartPolicy": "Always"}, {"name": "fetch"}]
    done = {"name": "fetch", "state": terminated(0)}
    raw["status"]["initContainerStatuses"] = [{"name": "logs", "state": {"running": {}}}, done]
    assert (read_pod(raw).ended, read_pod(raw).exit) == (False, Exit(0, "Completed", FIVE + 540))
    raw["status"]["initContainerStatuses"] = [{"name": "logs", "state": terminated(143)}, done]
    assert (read_pod(raw).ended, read_pod(raw).status_reason) == (True, ""), (
        "it was told to end: nothing failed"
    )


def test_a_pod_that_is_being_deleted_by_the_agent() -> None:
    raw = raw_pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "SpotReclamation"}])
    raw["metadata"]["deletionTimestamp"] = "2026-04-08T05:01:00Z"
    pod = read_pod(raw)
    assert (pod.deleting, pod.kill_at, pod.disruption) == (True, FIVE + 60, "SpotReclamation")


def waits(reason: str, message: str = "") -> Json:
    return {"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}


@pytest.mark.parametrize(
    ("field", "value", "trouble"),
    [
        (
            "conditions",
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"},
            "Unschedulable: 0/3",
        ),
        ("containerStatuses", waits("ImagePullBackOff", "no such image"), "ImagePullBackOff: no such image"),
        ("containerStatuses", waits("ContainerCreating"), ""),
        ("initContainerStatuses", waits("CrashLoopBackOff"), "CrashLoopBackOff: "),
    ],
)
def test_why_a_pod_does_not_start(field: str, value: Json, trouble: str) -> None:
    raw = raw_pod(phase="Pending")
    raw["status"] = {"phase": "Pending", field: [value]}
    assert read_pod(raw).trouble == trouble


def test_a_bare_pod() -> None:
    pod = read_pod({"metadata": {"namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "1"}})
    assert (pod.phase, pod.node, pod.ended, pod.requests) == ("Pending", "", False, {})


def test_a_node_without_its_heartbeats() -> None:
    node = read_node(raw_node())
    assert node == read_node(raw_node(heartbeat="2026-04-08T06:00:00Z", version=9))
    assert (node.ready, node.ready_since, node.schedulable) == (True, FIVE - 3600, True)
    assert node.capacity == {"cpu": 7910, "memory": 30 << 30, "nvidia.com/gpu": 4, "hugepages-2Mi": 0}


@pytest.mark.parametrize("ready", ["False", "Unknown"])
def test_a_node_that_is_not_ready(ready: str) -> None:
    assert read_node(raw_node(ready=ready)).ready is False


def test_the_agents_marks() -> None:
    marks = {
        "spot.training/notice-id": "evt-1" + "x" * 400,
        "spot.training/notice-source": "eci",
        "spot.training/reclaim-deadline": "2026-04-08T05:03:00Z",
        "spot.training/noticed-at": "not a time",
    }
    taints = [{"key": "spot.training/reclaim", "value": "terminate", "effect": "NoSchedule"}]
    node = read_node(raw_node(taints=taints, annotations=marks, unschedulable=True))
    assert node.notice is not None
    assert (node.notice.kind, node.notice.source, node.notice.deadline, node.notice.noticed_at) == (
        "terminate",
        "eci",
        FIVE + 180,
        None,
    )
    assert node.notice.id.startswith("evt-1")
    assert len(node.notice.id) == 256
    assert node.schedulable is False


def test_annotations_alone_are_no_notice() -> None:
    assert (
        read_node(raw_node(annotations={"spot.training/reclaim-deadline": "2026-04-08T05:03:00Z"})).notice
        is None
    )


@pytest.mark.parametrize(
    "key", ["node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"]
)
def test_taints_that_prove_a_machine_gone(key: str) -> None:
    taints = [{"key": key, "effect": "NoExecute", "timeAdded": "2026-04-08T05:00:00Z"}]
    assert read_node(raw_node(taints=taints)).out_of_service is True


def test_a_job_and_its_version() -> None:
    job = read_job(raw_job(phase="Running", failures=1))
    assert (job.version, job.generation, job.status.failures, job.claim) == ("3", 2, 1, "claim")
    assert job == read_job(raw_job(phase="Running", failures=1, version=4)), "a version is no difference"


def test_a_claim() -> None:
    claim = read_claim(
        {
            "metadata": {"name": "c", "uid": "u", "deletionTimestamp": "2026-04-08T05:00:00Z"},
            "spec": {"accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Bound"},
        }
    )
    assert (claim.deleting, claim.modes, claim.phase) == (True, ("ReadWriteOnce",), "Bound")


@pytest.mark.parametrize(
    ("message", "report"),
    [
        (None, None),
        ("", None),
        ("Segmentation fault", None),
        ("[1, 2]", None),
        ('"text"', None),
        ("[" * 4000, None),
        ('{"a":' * 700, None),
        ('{"step": 1}' + " " * 4096, None),
        ('Traceback\n{"reason":"Failed","step":3}\n', Report(reason="Failed", step=3)),
        ('{"step":1}\n{"step":2}', Report(step=2)),
        ('{"step":true,"totalSteps":-1,"checkpointStep":2.0}', Report()),
        ('{"step":NaN,"totalSteps":"9"}', Report()),
        ('{"step":1' + "0" * 300 + "}", Report()),
        ('{"checkpointTime":"yesterday"}', Report()),
        ('{"checkpointTime":"0001-01-01T00:00:00+23:59"}', Report()),
        ('{"checkpointTime":"2026-04-08T05:00:00"}', Report()),
        ('{"checkpointTime":12}', Report()),
        (
            '{"reason":"Preempted","step":5,"totalSteps":9,"checkpointStep":4,'
            '"checkpointTime":"2026-04-08T05:00:00.500Z","resumedStep":2,"extras":{"digest":"sha256:0","n":1},'
            '"resumedTime":"2026-04-08T05:00:00Z"}   \n',
            Report("Preempted", 5, 9, 4, FIVE + 0.5, 2, {"digest": "sha256:0", "n": "1"}, resumed_time=FIVE),
        ),
    ],
)
def test_a_report_is_one_line_of_json_and_anything_else_is_none(
    message: str | None, report: Report | None
) -> None:
    assert read_report(message) == report


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "reason",
        "step",
        "totalSteps",
        "checkpointStep",
        "checkpointTime",
        "resumedStep",
        "resumedTime",
        "extras",
    ]
)


@given(
    st.text()
    | st.dictionaries(KEYS, JSON | st.datetimes().map(lambda at: f"{at.isoformat()}Z")).map(json.dumps)
)
def test_no_message_is_an_error(message: str) -> None:
    report = read_report(message)
    for time in (report.checkpoint_time, report.resumed_time) if report is not None else ():
        assert time is None or format_time(time)
