"""Which pods leave next: a table of decisions, and what must hold in every world that can be made up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.api.names import DEADLINE_MARGIN_SECONDS as MARGIN
from spot_training.node.drain import (
    SYSTEM_CRITICAL,
    Action,
    Asked,
    Step,
    backoff,
    leaving,
    next_actions,
    refused,
)
from spot_training.node.pods import Pod, read

NOW = 1_000_000.0
REFUSED = Asked(NOW - 1, refusals=3)
EVICT, DELETE = Step.EVICT, Step.DELETE


def pod(
    name: str = "p",
    *,
    job: bool = False,
    priority: int = 0,
    grace: int = 30,
    stays: bool = False,
    ended: bool = False,
    kill_in: float | None = None,
) -> Pod:
    kill_at = None if kill_in is None else NOW + kill_in
    return Pod("ns", name, f"uid-{name}", job, priority, grace, stays, ended, kill_at)


@pytest.mark.parametrize(
    ("one", "history", "left", "step", "grace"),
    [
        # A job's pod goes at once, with its own grace or what is left.
        (pod(job=True), None, 60, DELETE, 30),
        (pod(job=True, grace=600), None, 60, DELETE, 60 - MARGIN),
        (pod(job=True, grace=600), None, 0, DELETE, 1),
        (pod(job=True, grace=600), None, -100, DELETE, 1),
        (pod(job=True, grace=0), None, 60, DELETE, 1),
        # Others are asked to leave, with the same grace.
        (pod(), None, 60, EVICT, 30),
        (pod(grace=600), None, 60, EVICT, 60 - MARGIN),
        (pod(grace=0), None, 60, EVICT, 1),
        # A budget is respected while the pod's own grace still fits, then no longer.
        (pod(), REFUSED, 60, EVICT, 30),
        (pod(), REFUSED, 36, EVICT, 30),
        (pod(), REFUSED, 35, DELETE, 30),
        (pod(grace=600), REFUSED, 60, EVICT, 55),
        (pod(grace=600), REFUSED, 35, DELETE, 30),
        (pod(grace=2), REFUSED, 10, EVICT, 2),
        (pod(grace=2), REFUSED, 7, DELETE, 2),
        # It is asked at least once, unless there is no time at all.
        (pod(grace=600), None, 20, EVICT, 15),
        (pod(), None, 7, DELETE, 2),
        (pod(), None, -60, DELETE, 1),
        # One that is going already is only hurried if it would still be there at the end.
        (pod(kill_in=20), None, 60, None, 0),
        (pod(kill_in=55), None, 60, None, 0),
        (pod(kill_in=500), None, 60, DELETE, 55),
        (pod(job=True, kill_in=500), None, 60, DELETE, 55),
        (pod(kill_in=500), None, 0, DELETE, 1),
        (pod(kill_in=1), None, 0, None, 0),
        (pod(kill_in=-30), None, 0, None, 0),
        # These are left alone.
        (pod(stays=True), None, 60, None, 0),
        (pod(job=True, ended=True), None, 60, None, 0),
        (pod(ended=True, kill_in=500), None, 60, None, 0),
        (pod(), Asked(NOW + 0.1, 1), 60, None, 0),
    ],
)
def test_what_happens_to_one_pod(
    one: Pod, history: Asked | None, left: float, step: Step | None, grace: int
) -> None:
    asked = {one.uid: history} if history else {}
    actions = next_actions([one], asked, NOW + left, NOW)
    assert actions == ([] if step is None else [Action(one, step, grace)])


def test_jobs_first_then_by_rising_priority() -> None:
    pods = [
        pod("web", priority=1000),
        pod("job", job=True, priority=5000),
        pod("batch", priority=-10),
        pod("api"),
    ]
    actions = next_actions(pods, {}, NOW + 60, NOW)
    assert [action.pod.name for action in actions] == ["job", "batch", "api", "web"]


def test_critical_pods_go_when_the_others_have_or_when_their_time_has_come() -> None:
    dns, web = pod("dns", priority=SYSTEM_CRITICAL), pod("web", kill_in=30)
    assert next_actions([dns, web], {}, NOW + 120, NOW) == []
    assert next_actions([dns, replace(web, ended=True)], {}, NOW + 120, NOW) == [Action(dns, EVICT, 30)]
    assert next_actions([dns, web], {}, NOW + 45, NOW) == [Action(dns, EVICT, 30)]


def test_backing_off_never_passes_the_moment_to_stop_asking() -> None:
    assert refused(pod(), 9, NOW + 60, NOW) == Asked(NOW + 2.0, 9)
    assert refused(pod(), 9, NOW + 36, NOW) == Asked(NOW + 1.0, 9)
    assert refused(pod(), 9, NOW + 35, NOW) == Asked(NOW + 2.0, 9)
    later = refused(pod(), 9, NOW + 36, NOW)
    assert next_actions([pod()], {"uid-p": later}, NOW + 36, NOW + 1) == [Action(pod(), DELETE, 30)]


def test_backoff_doubles_to_two_seconds() -> None:
    assert [backoff(failures) for failures in (1, 2, 3, 4, 5, 6, 1000)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


pods_of_a_node = st.lists(
    st.builds(
        pod,
        job=st.booleans(),
        priority=st.sampled_from([-10, 0, 1000, SYSTEM_CRITICAL, SYSTEM_CRITICAL + 1000]),
        grace=st.integers(0, 3600),
        stays=st.booleans(),
        ended=st.booleans(),
        kill_in=st.none() | st.floats(-100, 4000),
    ),
    max_size=12,
).map(lambda found: [replace(one, name=f"p{index}", uid=f"u{index}") for index, one in enumerate(found)])


@given(pods=pods_of_a_node, left=st.floats(-600, 600), refusals=st.integers(0, 9))
def test_grace_is_never_zero_never_more_than_is_left_and_never_for_what_stays(
    pods: list[Pod], left: float, refusals: int
) -> None:
    asked = {one.uid: Asked(NOW - 1, refusals) for one in pods} if refusals else {}
    for action in next_actions(pods, asked, NOW + left, NOW):
        assert action.grace >= 1
        assert action.grace <= max(1, left - MARGIN)
        assert not action.pod.stays and not action.pod.ended
        if action.pod.kill_at is None:
            assert action.grace <= max(1, action.pod.grace)
        else:
            assert action.step is DELETE
            assert NOW + action.grace < action.pod.kill_at
        if action.pod.job:
            assert action.step is DELETE


@given(
    pods=pods_of_a_node,
    notice=st.integers(20, 300),
    unwilling=st.sets(st.integers(0, 11)),
    step=st.floats(0.1, 2.0),
)
def test_everything_that_leaves_is_gone_by_the_deadline(
    pods: list[Pod], notice: int, unwilling: set[int], step: float
) -> None:
    """A world in which every pod uses its whole grace and some budgets never yield."""
    world = {one.uid: one for one in pods}
    deadline, now = NOW + notice, NOW
    asked: dict[str, Asked] = {}
    while now < deadline and leaving(world.values()):
        for action in next_actions(world.values(), asked, deadline, now):
            uid = action.pod.uid
            if action.step is EVICT and int(uid[1:]) in unwilling:
                refusals = asked[uid].refusals + 1 if uid in asked else 1
                asked[uid] = refused(action.pod, refusals, deadline, now)
            else:
                # The API server keeps whole seconds and lets a grace only become shorter.
                kill_at = math.floor(now + action.grace)
                assert action.pod.kill_at is None or kill_at <= action.pod.kill_at
                world[uid] = replace(action.pod, kill_at=kill_at)
                asked[uid] = Asked(now + 5)
        now += step
        for uid, one in list(world.items()):
            if one.kill_at is not None and one.kill_at <= now:
                del world[uid]
    late = {one.name: (one.kill_at or math.inf) - deadline for one in leaving(world.values())}
    assert not late


def test_the_facts_of_a_pod() -> None:
    bare = {
        "metadata": {"namespace": "ns", "name": "p", "uid": "u"},
        "spec": {"containers": [{}]},
        "status": {"phase": "Running"},
    }
    assert read(bare) == Pod("ns", "p", "u")
    full = {
        "metadata": {
            "namespace": "ns",
            "name": "p",
            "uid": "u",
            "labels": {"spot.training/job": "resnet"},
            "deletionTimestamp": "2026-04-08T05:00:00Z",
            "ownerReferences": [{"kind": "SpotTrainingJob", "controller": True}],
        },
        "spec": {
            "containers": [{}],
            "priority": 7,
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"state": {"running": {}}}],
        },
    }
    facts = Pod("ns", "p", "u", True, 7, 0, False, False, 1_775_624_400.0, True, True)
    assert read(full) == facts
    full["status"]["containerStatuses"] = [{"state": {"terminated": {"exitCode": 143}}}]  # type: ignore[index]
    assert read(full) == replace(facts, ended=True)


@pytest.mark.parametrize(
    ("metadata", "phase", "stays", "ended"),
    [
        ({"annotations": {"kubernetes.io/config.mirror": "x"}}, "Running", True, False),
        ({"ownerReferences": [{"kind": "DaemonSet", "controller": True}]}, "Running", True, False),
        ({"ownerReferences": [{"kind": "DaemonSet"}]}, "Running", False, False),
        ({"ownerReferences": [{"kind": "ReplicaSet", "controller": True}]}, "Pending", False, False),
        ({}, "Succeeded", False, True),
        ({}, "Failed", False, True),
    ],
)
def test_which_pods_stay_and_which_have_ended(
    metadata: dict[str, object], phase: str, stays: bool, ended: bool
) -> None:
    one = read(
        {"metadata": {"namespace": "ns", "name": "p", "uid": "u", **metadata}, "status": {"phase": phase}}
    )
    assert (one.stays, one.ended) == (stays, ended)


@pytest.mark.parametrize(
    ("volumes", "local_data", "own"),
    [
        ([{"emptyDir": {}}], True, 0),
        ([{"emptyDir": None}], True, 0),
        ([{"emptyDir": {"sizeLimit": "1Gi", "medium": ""}}], True, 0),
        ([{"emptyDir": {"medium": "Memory"}}, {"configMap": {}}], False, 0),
        ([{"emptyDir": {"medium": "HugePages-2Mi"}}], False, 0),
        ([{"persistentVolumeClaim": {"claimName": "c"}}], False, 0),
        ([{"ephemeral": {}}, {"ephemeral": {}}, {"emptyDir": {}}], True, 2),
        (None, False, 0),
    ],
)
def test_what_a_pod_loses_and_keeps_of_volumes(
    volumes: list[dict[str, object]] | None, local_data: bool, own: int
) -> None:
    one = read({"metadata": {"namespace": "ns", "name": "p", "uid": "u"}, "spec": {"volumes": volumes}})
    assert (one.local_data, one.volumes) == (local_data, own)
