"""From running to an end: success, reclamation, failure, loss, and what comes after each."""

import dataclasses
from typing import Any

import pytest

from spot_training.api.status import Interruption
from spot_training.api.times import parse_time
from spot_training.control.act import CreatePod, DeleteJob, DeletePod, OwnClaim
from spot_training.control.policies.marks import FOREIGN_MARKS, read_notice
from spot_training.control.world import Claim, Exit, Pod, Report
from tests.unit.control.build import NOW, Scene, pool, reclaim, spec, taint

PREEMPTED = Report(
    reason="Preempted", step=120, total_steps=500, checkpoint_step=120, checkpoint_time=NOW + 7
)
COMPLETED = Report(reason="Completed", step=500, total_steps=500, extras={"digest": "sha256:abc"})


def gang(replicas: int = 2, **fields: Any) -> Scene:
    return Scene(spec(replicas, **fields)).started()


def graces(did: list[object]) -> dict[str, int | None]:
    assert all(isinstance(each, DeletePod) for each in did), did
    return {each.name: each.grace for each in did if isinstance(each, DeletePod)}


# Success


def test_all_ranks_with_exit_code_0_are_success() -> None:
    scene = gang()
    scene.exit(0, 0).step()
    assert (scene.status.phase, scene.current.completed, scene.status.ready) == ("Running", [0], "1/2")
    scene.exit(0, 1, COMPLETED).step()
    assert scene.status.phase == "Succeeded"
    assert scene.why("Completed") == ("True", "Completed")
    assert scene.why()[0] == "False"
    assert (scene.status.extras, scene.status.step, scene.counts) == ({"digest": "sha256:abc"}, 500, (0, 0))
    assert scene.status.completion_time is not None


def test_a_rank_that_is_done_may_vanish() -> None:
    scene = gang().exit(0, 0)
    scene.step()
    assert scene.remove(0, tombstone=False).mark("a1", reclaim()).step() == []
    assert scene.current.stop is None
    scene.exit(0, 1).step()
    assert scene.status.phase == "Succeeded"


def test_exit_0_after_a_stop_is_success_only_if_the_program_says_so() -> None:
    scene = gang(1).mark("a1", reclaim())
    scene.run()
    scene.exit(0).run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))

    scene = gang(1).mark("a1", reclaim())
    scene.run()
    scene.exit(0, report=COMPLETED).run()
    assert (scene.status.phase, scene.counts) == ("Succeeded", (0, 0))


@pytest.mark.parametrize("fields", [{"deleting": True}, {"disruption": "EvictionByEvictionAPI"}])
def test_exit_0_of_a_pod_that_somebody_stopped_is_success_only_if_the_program_says_so(
    fields: dict[str, Any],
) -> None:
    assert gang(1).exit(0, **fields).run().counts == (1, 0)
    assert gang(1).exit(0, report=COMPLETED, **fields).run().status.phase == "Succeeded"


def test_a_finished_job_never_gets_another_pod() -> None:
    scene = gang(1).exit(0)
    scene.step()
    scene.remove(tombstone=False)
    for change in (scene.edit(suspend=True), scene.edit(suspend=False), scene):
        assert change.step(1000) == []
    assert scene.status.phase == "Succeeded"


def test_what_still_runs_of_a_finished_job_is_deleted() -> None:
    scene = gang(1).exit(0, ended=False)
    assert graces([*scene.step()]) == {"job-1-0": None}, "a sidecar still runs"


def test_time_to_live() -> None:
    scene = gang(1, ttlSecondsAfterFinished=30).exit(0)
    assert scene.step() == []
    assert scene.plan.wake_at == NOW + 30
    assert scene.step(29) == []
    assert scene.step(1) == [DeleteJob()]


@pytest.mark.parametrize(
    ("retain", "code", "owned"), [("OnFailure", 0, True), ("OnFailure", 1, False), ("Always", 0, False)]
)
def test_who_owns_the_claim_in_the_end(retain: str, code: int, owned: bool) -> None:
    made = spec(recovery={"maxFailures": 0}).to_json()
    made["checkpoint"] = {
        "mountPath": "/ckpt",
        "retain": retain,
        "claimTemplate": {"accessModes": ["ReadWriteMany"], "resources": {}},
    }
    scene = Scene(type(spec()).model_validate(made))
    scene.claim = Claim("job-checkpoint", "u", made_for="job")
    did = scene.started().exit(code).step()
    assert did == ([OwnClaim("job-checkpoint")] if owned else [])


# Reclamation


def test_a_mark_stops_the_attempt_once_and_in_time() -> None:
    scene = gang().mark("a1", reclaim(60))
    did = scene.step()
    assert graces([*did]) == {"job-1-0": 55, "job-1-1": 55}
    stop = scene.stop
    assert (stop.cls, stop.cause, stop.notice_ids, scene.left(stop.deadline)) == (
        "Disruption",
        "Reclaimed",
        ["n-1"],
        60,
    )
    assert scene.status.phase == "Recovering"
    assert scene.why("Recovering")[0] == "True"
    assert "Reclaimed: node a1 will be taken" in scene.condition().message
    assert [each.reason for each in scene.plan.stories] == ["Reclaimed"]
    for index in (0, 1):
        scene.change(index, deleting=True, kill_at=NOW + 55)
    assert scene.step(10) == [], "told once"
    assert scene.stop == stop


@pytest.mark.parametrize(("left", "grace"), [(600, 595), (12.9, 7), (6, 1), (3, 1), (-3, 1)])
def test_the_grace_is_what_is_left_less_the_margin(left: float, grace: int) -> None:
    assert graces([*gang(1).mark("a1", reclaim(left)).step()]) == {"job-1-0": grace}


def test_the_grace_of_a_late_deletion_is_from_now() -> None:
    scene = gang().mark("a1", reclaim(60))
    scene.step()
    assert graces([*scene.step(20)]) == {"job-1-0": 35, "job-1-1": 35}


def test_a_stop_is_not_taken_back_with_its_mark() -> None:
    scene = gang().mark("a1", reclaim(60)).run()
    stop = scene.stop
    scene.mark("a1", None)
    assert scene.step(5) == []
    assert scene.stop == stop
    scene.exit(143, 0).exit(143, 1).run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_an_earlier_deadline_tightens_a_later_one_does_not_loosen() -> None:
    scene = gang().mark("a1", reclaim(120)).run()
    scene.mark("a2", reclaim(40, "n-2"))
    assert graces([*scene.step()]) == {"job-1-0": 35, "job-1-1": 35}
    assert (scene.left(scene.stop.deadline), scene.stop.notice_ids) == (40, ["n-1", "n-2"])
    for index in (0, 1):
        scene.change(index, kill_at=NOW + 35)
    scene.mark("a2", None).mark("a1", reclaim(500))
    assert scene.step() == []
    assert scene.left(scene.stop.deadline) == 40


def test_a_notice_without_a_time_has_the_pools_usual_one() -> None:
    scene = gang(1)
    scene.pools["a"] = pool("a", noticeSeconds=30)
    scene.mark("a1", reclaim(None)).run()
    assert scene.left(scene.stop.deadline) == 29, "from when the agent noticed"
    deadline = scene.stop.deadline
    scene.run(5)
    assert scene.stop.deadline == deadline


def test_a_disruption_is_counted_once_however_often_one_looks() -> None:
    scene = gang().mark("a1", reclaim()).run()
    for _ in range(3):
        scene.run(1)
        assert scene.counts == (0, 0)
    scene.exit(143, 0).exit(143, 1)
    for _ in range(3):
        scene.run(1)
        assert (scene.counts, scene.current.attempt) == ((1, 0), 2)


def test_the_next_attempt_keeps_off_the_marked_node() -> None:
    scene = gang().mark("a1", reclaim()).run().exit(143, 0).exit(1, 1).run()
    assert scene.current.pool == "b"
    assert {each.node for each in scene.pods.values() if each.attempt == 2} == {"b1", "b2"}


def test_whatever_the_exit_codes_after_a_stop_it_is_no_failure() -> None:
    scene = gang().mark("a1", reclaim()).run().exit(1, 0).exit(137, 1).run()
    assert scene.counts == (1, 0)


def test_exits_that_are_seen_together_with_the_mark_are_its_doing() -> None:
    scene = gang().exit(1, 0).exit(1, 1).mark("a2", reclaim()).run()
    assert (scene.current.attempt, scene.counts) == (2, (1, 0))


def test_the_agent_was_faster_than_the_mark() -> None:
    scene = gang().change(0, deleting=True, disruption="SpotReclamation", kill_at=NOW + 50)
    assert graces([*scene.step()]) == {"job-1-1": None}
    assert (scene.stop.cause, scene.stop.notice_ids) == ("Reclaimed", [])
    scene.change(1, deleting=True, kill_at=NOW + 55).mark("a1", reclaim(30))
    did = scene.step()
    assert graces([*did]) == {"job-1-0": 25, "job-1-1": 25}
    assert (scene.stop.cause, scene.stop.notice_ids, scene.left(scene.stop.deadline)) == (
        "Reclaimed",
        ["n-1"],
        30,
    )
    entry = scene.status.timeline[-1]
    assert (entry.reason, entry.notice_id, entry.node) == ("Reclaimed", "n-1", "a1")


def test_a_nameless_deletion_becomes_a_reclamation_when_the_mark_is_seen() -> None:
    scene = gang(1).change(0, deleting=True, kill_at=NOW + 20).run()
    assert scene.stop.cause == "PodDeleted"
    scene.mark("a1", reclaim()).run()
    assert (scene.stop.cause, scene.stop.notice_ids) == ("Reclaimed", ["n-1"])
    scene.exit(143).run()
    assert scene.counts == (1, 0)
    assert scene.status.timeline[-1].reason == "Reclaimed"


@pytest.mark.parametrize("key", sorted(FOREIGN_MARKS))
def test_marks_of_others_are_notices(key: str) -> None:
    notice = read_notice([taint(key)], {}, {})
    assert notice is not None
    scene = gang(1).mark("a1", notice).run()
    assert (scene.stop.cause, scene.stop.notice_ids, scene.left(scene.stop.deadline)) == (
        "Reclaimed",
        [key],
        60,
    )
    assert FOREIGN_MARKS[key] in scene.stop.message


def test_a_mark_that_only_warns_stops_nothing() -> None:
    assert read_notice([taint("spot.training/reclaim", "PreferNoSchedule", "rebalance")], {}, {}) is None
    assert read_notice([taint("karpenter.sh/disrupted", "PreferNoSchedule")], {}, {}) is None


def test_the_deadline_has_passed_and_the_fenced_program_goes_on() -> None:
    scene = gang().mark("a1", reclaim(60)).run().exit(143, 1).run()
    scene.run(60)
    assert scene.current.attempt == 1
    scene.run(5)
    assert scene.current.attempt == 2


# The program's own failures


def test_a_failure_is_counted_and_tried_again_later() -> None:
    scene = gang(1).exit(1)
    assert scene.step() == []
    assert (scene.counts, scene.status.phase) == ((0, 1), "Recovering")
    assert scene.why() == ("False", "BackOff")
    due = scene.left(scene.status.next_try_at)
    assert 0 < due <= 10
    assert str(scene.status.next_try_at) in scene.condition().message
    assert scene.plan.wake_at == pytest.approx(NOW + due, abs=0.002)
    assert scene.step(due) == [CreatePod(0)]
    assert scene.status.next_try_at is None


def test_failures_wait_longer_each_time_and_then_it_is_over() -> None:
    scene = gang(1, recovery={"maxFailures": 3, "backoff": {"initialSeconds": 100, "maxSeconds": 150}})
    for count in range(1, 4):
        scene.exit(1).run()
        due = scene.left(scene.status.next_try_at)
        assert 0 < due <= min(150, 100 * 2 ** (count - 1)), (count, due)
        assert (scene.counts, scene.status.failure_streak) == ((0, count), count)
        scene.run(due).started()
    scene.exit(1).run()
    assert (scene.status.phase, scene.counts) == ("Failed", (0, 4))
    assert scene.why("Failed") == ("True", "MaxFailures")
    assert "exit code 1" in scene.condition("Failed").message
    assert scene.step(10_000) == []


def test_a_healthy_run_ends_a_streak_but_a_slow_stop_is_no_healthy_run() -> None:
    scene = gang(1).exit(1).run()
    scene.run(60).started().exit(1).run()
    assert scene.status.failure_streak == 2
    scene.run(60).started().run(60)
    scene.exit(1).run()
    assert scene.status.failure_streak == 1
    scene.run(60).started().exit(1, ended=False).run(1)
    scene.exit(1).run(300)
    assert scene.status.failure_streak == 2, "the attempt ran one second and took 300 to go"


def test_the_first_disruption_costs_no_delay_a_second_at_once_does() -> None:
    scene = gang(1).exit(143, deleting=True).run()
    assert (scene.current.attempt, scene.status.next_try_at) == (2, None)
    scene.started().exit(143, deleting=True).run()
    assert scene.why() == ("False", "BackOff")
    assert scene.counts == (2, 0)


def test_more_disruptions_than_allowed() -> None:
    scene = gang(1, recovery={"maxDisruptions": 0}).exit(143, deleting=True).run()
    assert (scene.status.phase, scene.why("Failed")) == ("Failed", ("True", "MaxDisruptions"))


def test_a_reboot_is_no_failure() -> None:
    scene = gang(1).exit(255, exit=Exit(255, "Unknown", NOW)).run()
    assert (scene.counts, scene.current.attempt) == ((1, 0), 2)


# Suspension, deadline


def test_suspend_and_resume() -> None:
    scene = gang().edit(suspend=True)
    assert graces([*scene.step()]) == {"job-1-0": None, "job-1-1": None}
    assert (scene.status.phase, scene.stop.cls) == ("Suspended", "Suspended")
    scene.exit(143, 0, PREEMPTED).exit(143, 1).run(5)
    assert (scene.status.phase, scene.counts) == ("Suspended", (0, 0))
    assert scene.why() == ("False", "Suspended")
    assert scene.why("Suspended") == ("True", "Suspended")
    assert scene.status.checkpoint is not None
    assert scene.status.checkpoint.step == 120
    assert scene.step(1000) == []
    scene.edit(suspend=False).started()
    assert (scene.current.attempt, scene.counts) == (2, (0, 0))
    assert scene.why("Suspended")[0] == "False"


def test_fewer_replicas_while_the_old_attempt_still_stops() -> None:
    scene = gang().edit(suspend=True, replicas=1)
    scene.run()
    scene.exit(143, 0).run()
    assert scene.current.end is None, "rank 1 still runs"
    scene.exit(143, 1).run()
    assert scene.current.end is not None


def test_fewer_replicas_do_not_make_a_success() -> None:
    scene = gang().exit(0, 0)
    scene.run()
    scene.edit(suspend=True, replicas=1).run()
    assert scene.status.phase == "Suspended"


def test_suspended_from_the_start() -> None:
    scene = Scene(spec(suspend=True))
    assert scene.step() == []
    assert (scene.status.phase, scene.status.current) == ("Suspended", None)


def test_the_deadline_runs_through_all_attempts() -> None:
    scene = gang(1, deadlineSeconds=100).exit(143, deleting=True).run(40)
    scene.started()
    assert scene.plan.wake_at == NOW + 100
    scene.run(60)
    assert (scene.stop.cls, scene.stop.cause) == ("Cancelled", "DeadlineExceeded")
    scene.exit(143).run()
    assert (scene.status.phase, scene.counts) == ("Failed", (1, 0))
    assert scene.why("Failed") == ("True", "DeadlineExceeded")


def test_the_deadline_passes_while_it_waits() -> None:
    scene = gang(1, deadlineSeconds=100).exit(143, deleting=True)
    scene.nodes = {}
    scene.run()
    assert scene.plan.wake_at == NOW + 100
    scene.run(100)
    assert scene.status.phase == "Failed"


def test_the_deadline_passes_while_it_is_suspended() -> None:
    scene = gang(1, deadlineSeconds=100).edit(suspend=True).run(40)
    scene.exit(143).run()
    assert (scene.status.phase, scene.plan.wake_at) == ("Suspended", NOW + 100)
    assert scene.step(60) == []
    assert (scene.status.phase, scene.counts) == ("Failed", (0, 0))
    assert scene.why("Failed") == ("True", "DeadlineExceeded")


def test_before_the_first_start_no_time_runs() -> None:
    scene = Scene(spec(deadlineSeconds=100, provisionTimeoutSeconds=600)).run().run(150)
    assert scene.status.phase == "Starting"
    assert scene.started().plan.wake_at == scene.now + 100


# The story


def test_the_timeline_tells_the_story() -> None:
    scene = gang().mark("a1", reclaim(60)).run(2)
    scene.exit(143, 0, PREEMPTED).exit(143, 1).run(6)
    scene.run(1)
    for index in (0, 1):
        scene.change(index, started_at=scene.now, running=True)
    scene.run()
    scene.exit(0, 0, dataclasses.replace(COMPLETED, resumed_step=120)).exit(0, 1).run()
    (entry,) = scene.status.timeline
    assert {
        key: parse_time(value) - NOW
        for key, value in entry.to_json().items()
        if key.endswith("At") or key == "deadline"
    } == {
        "noticedAt": -1,
        "cordonedAt": -0.5,
        "deadline": 60,
        "stoppedAt": 2,
        "savedAt": 7,
        "endedAt": 8,
        "recreatedAt": 8,
        "resumedAt": 9,
    }
    assert entry == Interruption.model_validate(
        entry.to_json()
        | {
            "attempt": 1,
            "reason": "Reclaimed",
            "noticeId": "n-1",
            "node": "a1",
            "pool": "a",
            "savedStep": 120,
            "reachedStep": 120,
            "recreatedPool": "b",
            "recreatedNodes": ["b1", "b2"],
            "resumedStep": 120,
        }
    )


def test_each_return_is_told_with_its_own_interruption() -> None:
    scene = gang(1)
    for resumed in (None, 120, 240):
        scene.run(70)
        scene.exit(143, report=dataclasses.replace(PREEMPTED, resumed_step=resumed), deleting=True).run()
        scene.started()
    assert [entry.resumed_step for entry in scene.status.timeline] == [120, 240, None]


def test_the_timeline_keeps_the_last_twenty() -> None:
    scene = gang(1)
    for _ in range(25):
        scene.run(70)
        scene.exit(143, deleting=True).run()
        scene.started()
    assert [entry.attempt for entry in scene.status.timeline] == list(range(6, 26))


def test_lost_seconds_are_those_after_the_last_save() -> None:
    scene = gang(1).run(100)
    saved = dataclasses.replace(PREEMPTED, checkpoint_time=NOW + 90)
    scene.exit(137, report=saved, deleting=True).run()
    assert scene.status.lost_seconds == 10


def test_a_pod_of_an_unknown_rank_is_not_forgotten() -> None:
    scene = gang(1)
    late = Pod("ns", "job-1-7", "u7", "a2", job="job", attempt=1, index=7, running=True)
    scene.pods["job-1-7"] = late
    scene.mark("a1", reclaim()).run()
    scene.exit(143).run()
    assert scene.current.end is None
