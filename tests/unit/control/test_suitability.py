"""A pool that does not suit the program is avoided for the job, with the reason, and tried again later."""

from spot_training.api.times import parse_time
from spot_training.control.world import Report
from tests.unit.control.build import Scene, spec


def proven_on_a() -> Scene:
    """The program has run on a, and is on b now."""
    scene = Scene(spec(recovery={"maxFailures": 0})).started()
    scene.exit(143, report=Report("Preempted", step=500), deleting=True)
    scene.used = {("a1", "nvidia.com/gpu"): 4, ("a2", "nvidia.com/gpu"): 4}
    scene.run()
    assert scene.status.proven_pools == ["a"]
    assert scene.current.pool == "b"
    return scene


def failed_on_b(scene: Scene) -> Scene:
    attempt = scene.current.attempt
    scene.run()
    scene.change(started_at=scene.now, running=True, phase="Running").run(5)
    scene.exit(1).run(5)
    assert scene.status.current is not None
    assert scene.current.end is not None or scene.current.attempt > attempt
    return scene


def test_a_program_that_fails_at_once_where_it_never_ran_is_not_to_blame() -> None:
    scene = failed_on_b(proven_on_a())
    assert scene.counts[1] == 0, "no failure of the program"
    assert scene.status.phase == "Recovering"
    (avoided,) = [each for each in scene.status.demoted_pools if each.avoid]
    assert (avoided.pool, avoided.reason, avoided.times) == ("b", "PoolUnsuitable", 1)
    assert 3590 <= parse_time(avoided.until) - scene.now <= 3600
    assert "failed there before its first step" in avoided.message
    assert "ran on a" in avoided.message
    assert scene.current.attempt == 2, "nowhere else is room"
    assert scene.why("CapacityAvailable")[0] == "False"
    assert "b: avoided until" in scene.condition("CapacityAvailable").message
    assert "PoolUnsuitable" in [story.reason for story in scene.plan.stories]


def test_it_is_tried_again_later_and_the_next_time_avoided_for_longer() -> None:
    scene = failed_on_b(proven_on_a())
    scene.run(3601)
    assert (scene.current.attempt, scene.current.pool) == (3, "b")
    failed_on_b(scene)
    (avoided,) = [each for each in scene.status.demoted_pools if each.avoid]
    assert avoided.times == 2
    assert 7190 <= parse_time(avoided.until) - scene.now <= 7200


def test_where_it_has_run_a_failure_is_its_own() -> None:
    scene = proven_on_a()
    scene.run()
    scene.change(started_at=scene.now, running=True, phase="Running").run(5)
    scene.exit(1, report=Report("Failed", step=600, resumed_step=500)).run(5)
    assert scene.counts[1] == 1
    assert scene.status.phase == "Failed"


def test_a_program_that_ran_nowhere_fails_by_itself() -> None:
    scene = Scene(spec(recovery={"maxFailures": 0})).started()
    scene.exit(1).run(5)
    assert scene.status.phase == "Failed"


def test_an_image_that_cannot_be_pulled_there_is_the_pools() -> None:
    scene = proven_on_a()
    scene.run().change(trouble="ImagePullBackOff: manifest for arm64 not found")
    scene.run(901)
    scene.remove().run()
    (avoided,) = [each for each in scene.status.demoted_pools if each.avoid]
    assert avoided.pool == "b"
    assert "did not start there (ImagePullBackOff: manifest for arm64" in avoided.message
