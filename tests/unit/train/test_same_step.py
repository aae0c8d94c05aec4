"""Saving a step a second time: the first is not given up before the second is whole."""

import errno
import os
import signal

import pytest

from tests.unit.train.programs import Program, Surroundings, Weights, fence, save_steps

AGAIN = """
import os, signal
from spot_training.train import Training
from tests.unit.train.programs import Weights, save_steps

weights = Weights()
training = Training({"weights": weights}, keep=3)
save_steps(training, weights, 40, 50)
calls, flush = [], os.fsync

def die_at_the_given_one(descriptor):
    calls.append(descriptor)
    if len(calls) == GIVEN:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)

os.fsync = die_at_the_given_one
save_steps(training, weights, 50)
print("survived")
"""


@pytest.mark.parametrize("given", [1, 2, 4, 6])
def test_killed_in_the_second_save_of_a_step_it_goes_on_from_the_first(
    surroundings: Surroundings, given: int
) -> None:
    program = Program("-c", AGAIN.replace("GIVEN", str(given)), env=surroundings.environment(1))
    code, out, err = program.end()
    assert (code, out) == (-signal.SIGKILL, ""), err
    loaded = Weights()
    training = surroundings.open(2, loaded)
    assert (training.load(), loaded.drawn) == (50, [50.0])
    assert training.passed_over == []


def test_a_disk_that_is_full_in_the_second_save_leaves_the_first(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights)
    save_steps(training, weights, 40, 50)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        weights.drawn = [51.0]
        training.save()
    assert sorted(path.name for path in surroundings.path(1, 50).parent.glob("step-*")) == [
        "step-000000000040", "step-000000000050",
    ]  # fmt: skip
    loaded = Weights()
    assert surroundings.open(2, loaded).load() == 50
    assert loaded.drawn == [50.0]


def test_the_last_save_of_a_step_is_loaded_and_takes_the_place_of_those_before(
    surroundings: Surroundings,
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights)
    save_steps(training, weights, 40)
    for value in (60.0, 60.25, 60.5, 60.75):
        training.step, weights.drawn = 60, [value]
        training.save().wait()
    left = sorted(path.name for path in surroundings.path(1, 60).parent.iterdir() if path.is_dir())
    assert left == ["step-000000000040", "step-000000000060.3"], "the step before is kept, too"
    loaded = Weights()
    assert surroundings.open(2, loaded).load() == 60
    assert loaded.drawn == [60.75]


def test_what_a_successor_has_accepted_stays_whatever_its_predecessor_saves_again(
    surroundings: Surroundings,
) -> None:
    weights, loaded = Weights(), Weights()
    zombie = surroundings.open(1, weights)
    save_steps(zombie, weights, 50)
    successor = surroundings.open(2, loaded)
    weights.drawn = [99.0]
    zombie.save().wait()
    assert (successor.load(), loaded.drawn) == (50, [50.0])
    assert successor.passed_over == []
    assert (surroundings.directory / fence(1) / "step-000000000050.1").is_dir()


def test_of_a_damaged_last_save_the_one_before_it_is_loaded_while_it_is_there(
    surroundings: Surroundings,
) -> None:
    weights, loaded = Weights(), Weights()
    training = surroundings.open(1, weights)
    save_steps(training, weights, 50)
    surroundings.open(2, Weights())  # so the first attempt removes nothing from here on
    weights.drawn = [50.5]
    training.save().wait()
    (surroundings.directory / fence(1) / "step-000000000050.1" / "state.json").write_text("{}")
    again = surroundings.open(1, loaded)
    assert (again.load(), loaded.drawn) == (50, [50.0])
    assert [item.checkpoint for item in again.passed_over] == [f"{fence(1)}/step-000000000050.1"]
