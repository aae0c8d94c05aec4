"""Training that was lost: what an attempt had done since its last save, also where its machine told nothing."""

import dataclasses

import pytest

from spot_training.control.world import Report
from tests.unit.control.build import NOW, Scene, reclaim, spec

HOUR = 3600.0


def told(step: int = 120, saved: float | None = None, **fields: object) -> Report:
    about = {"checkpoint_step": step, "checkpoint_time": saved} if saved is not None else {}
    return Report(reason="Preempted", step=step, **(about | fields))  # type: ignore[arg-type]


def end(scene: Scene, report: Report | None, code: int = 143) -> Scene:
    return scene.exit(code, report=report, ended_at=scene.now, deleting=True).run()


def die(scene: Scene, heard: float) -> Scene:
    """The attempt's machine is lost without a word; its kubelet was heard of last at ``heard``."""
    name = scene.pod().node
    scene.leases[name] = heard
    del scene.nodes[name]
    before = scene.status.disruptions
    for _ in range(60):
        scene.run(10)
        if scene.status.disruptions > before:
            return scene
    raise AssertionError(f"the loss is not noticed: {scene.status.to_json()}")


def again(scene: Scene) -> Scene:
    """The next attempt runs."""
    attempt = scene.status.disruptions + scene.status.failures + 1
    for _ in range(60):
        if scene.current.attempt == attempt:
            return scene.started()
        scene.run(20)
    raise AssertionError(f"no attempt {attempt}: {scene.status.to_json()}")


def gang(**fields: object) -> Scene:
    return Scene(spec(**fields)).started()  # type: ignore[arg-type]


def test_what_came_after_the_last_save_is_lost() -> None:
    scene = gang()
    scene.now += 100
    assert end(scene, told(saved=NOW + 90)).status.lost_seconds == 10


def test_an_attempt_that_told_of_steps_and_of_no_save_has_lost_all() -> None:
    scene = gang()
    scene.now += HOUR
    scene.mark("a1", reclaim(HOUR + 60)).run()
    assert end(scene, told(120)).status.lost_seconds == 3600


def test_a_silent_end_is_settled_by_what_a_later_attempt_resumed() -> None:
    scene = gang()
    scene.now += 100
    end(scene, told(saved=NOW + 90))
    again(scene)
    began = scene.now
    scene.now += 10 * HOUR
    die(scene, heard=scene.now - 40)
    assert scene.status.lost_seconds == 10, "nobody knows what the machine had saved"
    assert [each.attempt for each in scene.status.unsettled] == [2]
    again(scene)
    saved = began + 10 * HOUR - 100
    scene.now += 500
    report = told(900, scene.now, resumed_step=800, resumed_time=saved)
    end(scene, report)
    assert scene.status.cost is not None
    assert [(each.attempt, each.lost_seconds) for each in scene.status.cost.attempts][:2] == [
        (1, 10),
        (2, 60),
    ]
    assert scene.status.lost_seconds == 10 + 60, "up to the last that was heard, not up to when it was missed"
    assert scene.status.unsettled == []


@pytest.mark.parametrize(
    ("step", "saved", "resumed", "before", "own"),
    [
        (5, None, 0, 3600, 100),
        (120, NOW + 3000, 120, 600, 100),
        (900, NOW + 99_999, 120, 0, 0),
    ],
    ids=["from scratch", "saved nothing since", "has saved since"],
)
def test_without_its_time_what_was_resumed_is_known_by_its_step(
    step: int, saved: float | None, resumed: int, before: int, own: int
) -> None:
    scene = gang()
    scene.now = NOW + HOUR
    die(scene, heard=scene.now)
    again(scene)
    scene.now += 100
    end(scene, told(step, saved, resumed_step=resumed))
    assert (scene.status.lost_seconds, scene.status.unsettled) == (before + own, [])


def test_silent_ends_in_a_row_are_settled_together_and_bounded() -> None:
    scene = gang(recovery={"backoff": {"initialSeconds": 1, "maxSeconds": 1}})
    spans = []
    for _ in range(3):
        began = scene.now
        scene.now += 1000
        spans.append((began, scene.now))
        die(scene, heard=scene.now)
        scene.nodes = {name: dataclasses.replace(each) for name, each in Scene().nodes.items()}
        again(scene)
    assert len(scene.status.unsettled) == 3
    end(scene, told(9, scene.now, resumed_step=5, resumed_time=spans[1][0] + 300))
    assert scene.status.lost_seconds == 700 + 1000


def test_a_program_without_the_library_settles_nothing() -> None:
    scene = gang(checkpoint={"writer": "Other"})
    scene.now += HOUR
    end(scene, None)
    assert (scene.status.lost_seconds, scene.status.unsettled) == (0, [])


def test_what_was_told_is_known_when_the_pod_is_forgotten() -> None:
    scene = Scene(spec(2)).started()
    scene.now += 100
    scene.mark("a1", reclaim()).run()
    scene.exit(143, 0, report=told(saved=NOW + 95), ended_at=scene.now).run()
    scene.remove(0, tombstone=False)
    scene.exit(143, 1, ended_at=scene.now + 20).run(20)
    assert scene.status.disruptions == 1
    assert (scene.status.lost_seconds, scene.status.unsettled) == (5, [])
