"""Attempts that overlap, wake up late, or share a directory with other jobs."""

import shutil
from pathlib import Path

import pytest

from spot_training.train import CheckpointError, Training
from tests.unit.train.programs import Surroundings, Weights, fence, save_steps


def test_an_attempt_loads_what_the_one_before_has_saved(surroundings: Surroundings) -> None:
    first = Weights()
    save_steps(surroundings.open(1, first), first, 100, 150)
    second = Weights()
    assert surroundings.open(2, second).load() == 150
    assert second.drawn == [150.0]


def test_what_a_zombie_saves_later_is_never_read_by_any_later_attempt(surroundings: Surroundings) -> None:
    first, second = Weights(), Weights()
    zombie = surroundings.open(1, first)
    save_steps(zombie, first, 100)
    successor = surroundings.open(2, second)
    save_steps(zombie, first, 200, 300)
    assert surroundings.steps(1) == [100, 200, 300], "a zombie that sees its successor removes nothing"
    assert successor.load() == 100
    third = Weights()
    assert surroundings.open(3, third).load() == 100, "the second has saved nothing, but its list still holds"
    save_steps(successor, second, 110)
    fourth = Weights()
    assert surroundings.open(4, fourth).load() == 100, "the third's list was made before the second saved"
    assert fourth.drawn == [100.0]


def test_a_zombie_that_completes_later_completes_nothing(surroundings: Surroundings) -> None:
    first, second = Weights(), Weights()
    zombie = surroundings.open(1, first, total_steps=300)
    save_steps(zombie, first, 100)
    successor = surroundings.open(2, second, total_steps=300)
    zombie.step = 300
    zombie.complete()
    assert successor.load() == 100
    assert not successor.finished
    assert surroundings.open(3, Weights()).load() == 100


def test_a_zombie_that_starts_late_reads_and_harms_nothing_newer(surroundings: Surroundings) -> None:
    second, late = Weights(), Weights()
    save_steps(surroundings.open(2, second), second, 100, 150)
    zombie = surroundings.open(1, late, keep=1)
    assert zombie.load() == 0
    save_steps(zombie, late, 10, 20)
    assert surroundings.steps(2) == [100, 150]
    third = Weights()
    assert surroundings.open(3, third).load() == 150


def test_the_zombies_last_removal_leaves_what_its_successor_loads(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zombie has looked and seen no successor; the successor starts; then the zombie removes."""
    first, second = Weights(), Weights()
    zombie = surroundings.open(1, first, keep=2)
    save_steps(zombie, first, 100, 150)
    started: list[Training] = []
    original = shutil.rmtree

    def start_successor_then_remove(path: Path, ignore_errors: bool = False) -> None:
        if not started:
            started.append(surroundings.open(2, second))
        original(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", start_successor_then_remove)
    save_steps(zombie, first, 200)
    assert surroundings.steps(1) == [150, 200]
    assert started[0].load() == 200


def test_only_the_newest_are_kept_whoever_saved_them(surroundings: Surroundings) -> None:
    first, second = Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100, 150)
    current = surroundings.open(2, second)
    save_steps(current, second, 160)
    assert (surroundings.steps(1), surroundings.steps(2)) == ([150], [160])
    (surroundings.directory / "lost+found").mkdir()
    (surroundings.directory / "tensorboard").mkdir()
    save_steps(current, second, 170)
    left = sorted(path.name for path in surroundings.directory.iterdir())
    assert left == sorted([fence(2), "lost+found", "tensorboard"]), (
        "the older attempt is gone, what is not ours stays"
    )


def test_what_a_killed_save_left_is_no_checkpoint_and_is_removed_in_time(surroundings: Surroundings) -> None:
    first, second = Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100, 150)
    (surroundings.path(1, 150) / "manifest.json").unlink()
    current = surroundings.open(2, second)
    assert current.load() == 100
    assert current.passed_over == [], "never a checkpoint, so nothing to report"
    save_steps(current, second, 150)
    assert not surroundings.path(1, 150).exists()


def test_a_process_that_starts_again_under_the_same_fence_goes_on_with_its_own(
    surroundings: Surroundings,
) -> None:
    first = Weights()
    save_steps(surroundings.open(1, first), first, 100)
    again = Weights()
    training = surroundings.open(1, again)
    assert training.load() == 100
    save_steps(training, again, 150)
    surroundings.path(1, 200).mkdir()
    (surroundings.path(1, 200) / "state.json").write_text("half")
    third = Weights()
    training = surroundings.open(1, third)
    assert training.load() == 150
    save_steps(training, third, 200)
    assert surroundings.steps(1) == [150, 200]


def test_a_start_that_was_killed_before_its_list_does_not_count(surroundings: Surroundings) -> None:
    first, third = Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100)
    (surroundings.directory / fence(2)).mkdir()
    (surroundings.directory / fence(2) / "started.json").write_text("")
    assert surroundings.open(3, third).load() == 100


def test_without_a_fence_a_restarted_run_resumes_and_numbers_itself(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPOT_FENCE", "SPOT_CHECKPOINT_DIR", "SPOT_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)
    for step in (10, 20, 30):
        weights = Weights()
        training = Training({"weights": weights}, directory=surroundings.directory)
        assert training.load() == step - 10
        save_steps(training, weights, step)
    attempts = sorted(path.name for path in surroundings.directory.iterdir())
    assert [name[17:] for name in attempts] == ["local-000002", "local-000003"]


def test_another_jobs_checkpoints_start_a_new_one_and_stay_as_they_are(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Weights()
    training = surroundings.open(1, other, total_steps=100)
    save_steps(training, other, 50, 100)
    training.complete()
    old = surroundings.directory
    before = sorted(str(path) for path in old.rglob("*"))
    surroundings.directory = old.with_name("new")
    monkeypatch.setenv("SPOT_RESUME_DIR", str(old))
    weights = Weights()
    training = surroundings.open(1, weights, total_steps=300)
    assert training.load() == 100
    assert not training.finished, "that the other job is complete says nothing of this one"
    assert weights.drawn == [100.0]
    again = Weights()
    training = surroundings.open(2, again)
    assert training.load() == 100, "the first attempt has saved nothing: still the other job's"
    save_steps(training, again, 200)
    last = Weights()
    assert surroundings.open(3, last).load() == 200, "our own go before another job's"
    assert sorted(str(path) for path in old.rglob("*")) == before


def test_a_damaged_list_leaves_its_owners_checkpoints(surroundings: Surroundings) -> None:
    first, second, third = Weights(), Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100)
    save_steps(surroundings.open(2, second), second, 150)
    (surroundings.directory / fence(2) / "accepted.json").write_text("{")
    training = surroundings.open(3, third)
    assert training.load() == 150
    save_steps(training, third, 160)
    assert surroundings.open(4, Weights()).load() == 160


def test_a_damaged_list_without_checkpoints_does_not_mean_there_were_none(surroundings: Surroundings) -> None:
    first = Weights()
    save_steps(surroundings.open(1, first), first, 100)
    surroundings.open(2, Weights()).load()
    (surroundings.directory / fence(2) / "accepted.json").write_text("{")
    for attempt in (3, 4, 5):
        with pytest.raises(CheckpointError, match=r"accepted\.json is no whole record"):
            surroundings.open(attempt, Weights()).load()


def test_checkpoints_that_have_vanished_do_not_mean_there_were_none(surroundings: Surroundings) -> None:
    first = Weights()
    save_steps(surroundings.open(1, first), first, 100)
    training = surroundings.open(2, Weights())
    shutil.rmtree(surroundings.path(1, 100))
    with pytest.raises(CheckpointError, match="is gone"):
        training.load()
    for attempt in (3, 4):
        with pytest.raises(CheckpointError, match="had accepted are gone"):
            surroundings.open(attempt, Weights()).load()
