"""A checkpoint claim that is full: a condition, no failure of the program, tried again when there may be room."""

import dataclasses
from typing import Any

import pytest

from spot_training.api.times import format_time
from spot_training.control.observations import ClaimFilled, observations
from spot_training.control.policies.classify import Case, classify
from spot_training.control.read import read_claim, read_report
from spot_training.control.world import Claim, Exit, Pod, Report
from tests.unit.control.build import NOW, Scene, reclaim, spec
from tests.unit.control.objects import Json

ENDED = Report("VolumeFull", step=70, volume_full=True)
SLOW: dict[str, Any] = {"maxFailures": 0, "backoff": {"initialSeconds": 100, "maxSeconds": 150}}


def full(replicas: int = 1, **fields: Any) -> Scene:
    """A job whose program has ended for want of room; nothing else may be held against it."""
    scene = Scene(spec(replicas, recovery=SLOW | fields.pop("recovery", {}), **fields))
    scene.claim = Claim("claim", "claim-uid", capacity="10Gi")
    scene.started()
    return ended(scene)


def ended(scene: Scene, report: Report = ENDED) -> Scene:
    for index in range(scene.job.spec.replicas):
        scene.exit(1, index, report)
    return scene.run()


def test_it_is_no_failure_and_the_condition_says_what_to_do() -> None:
    scene = full()
    assert (scene.counts, scene.status.phase) == ((0, 0), "Pending")
    assert scene.current.end is not None
    assert (scene.current.end.cls, scene.current.end.reason) == ("Blocked", "ClaimFull")
    for condition in ("ClaimReady", "Running"):
        assert scene.why(condition) == ("False", "ClaimFull")
        said = scene.condition(condition).message
        assert "claim claim (10Gi) is full" in said
        assert "enlarge the claim" in said
        assert "keep fewer checkpoints" in said
    until = f"next try at {scene.status.next_try_at}, or when the claim has grown or the job is edited"
    assert until in scene.condition().message
    assert 0 < scene.left(scene.status.next_try_at) <= 100
    assert scene.plan.wake_at == pytest.approx(scene.now + scene.left(scene.status.next_try_at), abs=0.002)
    told = [story for story in scene.plan.stories if story.reason == "ClaimFull"]
    assert {story.type for story in told} == {"Warning"}
    assert "enlarge the claim" in told[-1].message
    assert scene.status.timeline[-1].reason == "ClaimFull"


def test_a_claim_that_has_grown_is_tried_at_once() -> None:
    scene = full()
    scene.claim = Claim("claim", "claim-uid", capacity="20Gi")
    scene.run(1)
    assert scene.current.attempt == 2
    assert scene.why("ClaimReady") == ("True", "ClaimReady")
    assert scene.status.full_claim is None
    assert "has 20Gi now" in " ".join(story.message for story in scene.plan.stories)


def test_another_claim_of_the_name_is_tried_at_once() -> None:
    scene = full()
    scene.claim = Claim("claim", "another", capacity="10Gi")
    assert scene.run(1).current.attempt == 2


def test_an_edited_job_is_tried_at_once() -> None:
    assert full().edit(deadlineSeconds=99_999).run(1).current.attempt == 2


def test_nothing_that_is_not_about_room_ends_the_wait() -> None:
    scene = full()
    assert scene.claim is not None
    scene.claim = dataclasses.replace(scene.claim, owner_uids=("job-uid",))
    assert scene.run(0.5).current.attempt == 1


def test_it_is_tried_again_later_each_time_until_an_attempt_saves() -> None:
    scene = full()
    for times in (1, 2, 3):
        assert scene.status.full_claim is not None
        assert scene.status.full_claim.times == times
        due = scene.left(scene.status.next_try_at)
        assert 0 < due <= min(150, 100 * 2 ** (times - 1))
        scene.run(due)
        assert scene.why("ClaimReady") == ("True", "TriedAgain")
        scene.started()
        ended(scene)
    scene.run(scene.left(scene.status.next_try_at)).started()
    scene.run(5).exit(
        143, report=Report("Preempted", 80, checkpoint_step=80, checkpoint_time=scene.now), deleting=True
    )
    scene.run()
    assert scene.status.full_claim is None
    assert scene.counts == (1, 0)
    assert (scene.current.attempt, scene.why("ClaimReady")) == (6, ("True", "ClaimReady"))


def test_an_attempt_that_saved_before_it_found_no_room_begins_the_row_anew() -> None:
    scene = full()
    scene.run(scene.left(scene.status.next_try_at)).started()
    made = dataclasses.replace(ENDED, checkpoint_step=75, checkpoint_time=scene.now + 5)
    scene.run(9)
    ended(scene, made)
    assert scene.status.full_claim is not None
    assert scene.status.full_claim.times == 1
    assert "the newest checkpoint is that of step 75" in scene.condition().message


def test_a_reclaimed_attempt_whose_last_save_found_no_room_waits_too() -> None:
    scene = Scene(spec(recovery=SLOW)).started().mark("a1", reclaim()).run()
    scene.exit(143, report=Report("Preempted", 70, volume_full=True)).run()
    assert scene.counts == (1, 0), "a reclamation is what it was"
    assert (scene.why(), scene.current.attempt) == (("False", "ClaimFull"), 1)


def test_a_program_that_fails_by_itself_is_counted_though_the_claim_was_full() -> None:
    scene = Scene(spec(recovery=SLOW | {"maxFailures": 1})).started()
    ended(scene, Report("Failed", 70, volume_full=True))
    assert (scene.counts, scene.why()) == ((0, 1), ("False", "ClaimFull"))
    scene.run(scene.left(scene.status.next_try_at)).started()
    ended(scene, Report("Failed", 70, volume_full=True))
    assert (scene.status.phase, scene.why("Failed")) == ("Failed", ("True", "MaxFailures"))
    assert scene.status.next_try_at is None


def test_a_completed_job_is_complete() -> None:
    scene = Scene(spec()).started()
    scene.exit(0, report=Report("Completed", 100, volume_full=True)).run()
    assert scene.status.phase == "Succeeded"


def test_in_a_gang_the_rank_that_says_so_decides() -> None:
    scene = Scene(spec(2, recovery=SLOW)).started()
    scene.exit(1, 0, Report("PeerLost")).run()
    assert (scene.stop.cls, scene.counts) == (None, (0, 0)), "not judged before the Leases"
    scene.exit(1, 1, ENDED).run()
    assert scene.current.end is not None
    assert (scene.current.end.cls, scene.counts) == ("Blocked", (0, 0))


def test_an_operator_that_comes_when_the_pod_is_gone_waits_as_well() -> None:
    scene = Scene(spec(recovery=SLOW)).started()
    scene.exit(1, report=ENDED, ended=False).run()
    assert (scene.stop.cls, scene.current.end) == ("Blocked", None)
    scene.remove(tombstone=False).run()
    assert (scene.why(), scene.current.attempt) == (("False", "ClaimFull"), 1)


def test_a_suspended_job_goes_on_when_it_is_resumed() -> None:
    scene = full().edit(suspend=True).run()
    assert scene.status.phase == "Suspended"
    assert scene.edit(suspend=False).run().current.attempt == 2


# What the pod and the claim say


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ('{"reason":"VolumeFull","step":7}', 1, ("Blocked", True)),
        ('{"reason":"Running","step":7,"saveTrouble":"VolumeFull"}', 137, ("Failure", True)),
        ('{"reason":"Failed","saveTrouble":"VolumeFull"}', 1, ("Failure", True)),
        ('{"reason":"Preempted","saveTrouble":"VolumeFull"}', 143, ("Disruption", True)),
        ('{"reason":"Failed","saveTrouble":["VolumeFull"]}', 1, ("Failure", False)),
        ('{"reason":"Failed","message":"No space left on device"}', 1, ("Failure", False)),
    ],
)
def test_what_the_termination_message_means(said: str, code: int, expected: tuple[str, bool]) -> None:
    report = read_report(said)
    assert report is not None
    pod = Pod("ns", "p", "u", "a1", started_at=NOW, exit=Exit(code, "Error", NOW), report=report)
    assert (classify(Case(pod, False)).cls, report.volume_full) == expected


@pytest.mark.parametrize(
    ("status", "capacity"),
    [({"phase": "Bound", "capacity": {"storage": "10Gi"}}, "10Gi"), ({"phase": "Pending"}, ""), ({}, "")],
)
def test_what_a_claim_holds(status: Json, capacity: str) -> None:
    assert read_claim({"metadata": {"name": "c", "uid": "u"}, "status": status}).capacity == capacity


def test_each_time_is_counted_and_no_recovery_time_comes_of_it() -> None:
    scene = Scene(spec(recovery=SLOW)).started()
    before = scene.status
    ended(scene)
    assert observations(before, scene.status) == [ClaimFilled()]
    after = scene.status
    scene.run(scene.left(scene.status.next_try_at)).started()
    assert scene.status.timeline[-1].resumed_at == format_time(scene.now)
    found = observations(after, scene.status)
    assert [type(each).__name__ for each in found] == ["Opened"], found
