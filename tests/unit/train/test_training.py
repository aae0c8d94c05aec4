"""The loop: resuming, saving in time, stopping when told, completing once."""

import os
import random
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from spot_training.train import Preempted, Training, checkpoint
from tests.unit.train.programs import Program, Surroundings, Weights, save_steps

LOOP = """
import random
import time

from spot_training.train import Training
from tests.unit.train.programs import Weights

weights = Weights()
training = Training({"weights": weights}, total_steps=40, save_every_steps=10)
random.seed(7)
for step in training.steps():
    weights.drawn.append(random.random())
    print("step", step, flush=True)
    time.sleep(0.01)
print("weights", weights.drawn)
"""


def _uninterrupted() -> list[float]:
    chance = random.Random(7)
    return [chance.random() for _ in range(40)]


def _train(surroundings: Surroundings, attempt: int, stop_at: int | None = None, **arguments: Any) -> Weights:
    weights = Weights()
    training = surroundings.open(attempt, weights, **{"total_steps": 40, "save_every_steps": 10, **arguments})
    random.seed(7)
    for step in training.steps():
        weights.drawn.append(random.random())
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
    return weights


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_143_after_a_save_and_nothing_is_computed_twice(
    surroundings: Surroundings, number: signal.Signals
) -> None:
    program = Program("-c", LOOP, env={**surroundings.environment(1), "SPOT_GRACE_SECONDS": "25"})
    program.read_until("step 3")
    for _ in range(5):  # an impatient sender does no harm
        program.signal(number)
    code, out, err = program.end()
    assert code == 143, err
    report = surroundings.report()
    assert report["reason"] == "Preempted"
    assert report["checkpointStep"] == report["step"] >= 4
    assert f"told to stop ({number.name}): saving, 25 s left" in err
    assert "weights" not in out, "what follows the loop is for programs that have come to their end"
    code, out, err = Program("-c", LOOP, env=surroundings.environment(2)).end()
    assert code == 0, err
    assert f"resumed from step {report['step']} (attempt 2, checkpoint of attempt 1)" in err
    assert out.splitlines()[0] == f"step {report['step']}"
    assert out.splitlines()[-1] == f"weights {_uninterrupted()}"


def test_killed_it_goes_on_from_the_last_save_and_the_message_tells_of_it(surroundings: Surroundings) -> None:
    program = Program("-c", LOOP, env=surroundings.environment(1))
    program.read_until("step 15")
    program.signal(signal.SIGKILL)
    assert program.end()[0] == -signal.SIGKILL
    report = surroundings.report()
    assert (report["reason"], report["checkpointStep"]) == ("Running", 10)
    assert _train(surroundings, 2).drawn == _uninterrupted()
    assert surroundings.report()["resumedStep"] == 10


def test_stopped_again_and_again_it_computes_the_same(surroundings: Surroundings) -> None:
    for attempt, stop_at in enumerate([0, 1, 9, 10, 25, 38], start=1):
        with pytest.raises(Preempted) as stopped:
            _train(surroundings, attempt, stop_at)
        assert stopped.value.code == 143
    assert _train(surroundings, 7).drawn == _uninterrupted()


def test_a_finished_program_that_is_started_again_ends_at_once_with_its_last_state(
    surroundings: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = _train(surroundings, 1).drawn
    surroundings.termination_log.write_text("")
    weights = Weights()
    training = surroundings.open(2, weights, total_steps=40)
    assert list(training.steps()) == []
    assert weights.drawn == drawn
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Completed", 40, 40)
    assert surroundings.steps(2) == [], "nothing is saved anew"
    longer = surroundings.open(3, Weights(), total_steps=41)
    assert list(longer.steps()) == [40], "with more to do it goes on"


def test_a_program_without_a_number_of_steps_says_when_it_is_complete(surroundings: Surroundings) -> None:
    training = surroundings.open(1, Weights())
    for step in training.steps():
        if step == 4:
            break
    training.complete(digest="abc")
    again = surroundings.open(2, Weights())
    assert list(again.steps()) == []
    assert surroundings.report()["extras"] == {"digest": "abc"}


def test_what_is_added_after_completion_is_recorded_and_told_again(surroundings: Surroundings) -> None:
    training = surroundings.open(1, Weights(), total_steps=2)
    assert list(training.steps()) == [0, 1]
    training.complete(digest="abc")
    assert surroundings.report()["extras"] == {"digest": "abc"}
    assert surroundings.report()["reason"] == "Completed"
    list(surroundings.open(2, Weights(), total_steps=2).steps())
    assert surroundings.report()["extras"] == {"digest": "abc"}


def test_a_loop_of_ones_own(surroundings: Surroundings) -> None:
    def run(attempt: int, stop_at: int | None) -> list[float]:
        weights = Weights()
        training = surroundings.open(attempt, weights, total_steps=40, save_every_steps=10)
        random.seed(7)
        training.load()
        while training.step < 40:
            weights.drawn.append(random.random())
            if training.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            training.extras["loss"] = training.step / 2
            training.step_done()
        training.complete()
        return weights.drawn

    with pytest.raises(KeyboardInterrupt):
        run(1, stop_at=17)
    assert surroundings.steps(1) == [10, 18]
    assert surroundings.report()["extras"] == {"loss": 8.5}
    assert run(2, stop_at=None) == _uninterrupted()


def test_told_to_stop_before_the_first_step_it_neither_trains_nor_saves(surroundings: Surroundings) -> None:
    with pytest.raises(Preempted):
        _train(surroundings, 1, stop_at=14)
    training = surroundings.open(2, Weights(), total_steps=40)
    os.kill(os.getpid(), signal.SIGTERM)
    assert training.stopping
    with pytest.raises(Preempted):
        list(training.steps())
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Preempted", None, None), (
        "of the older attempts' steps it knows nothing yet"
    )

    class Told(Weights):
        def load_state_dict(self, state: dict[str, Any], /) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        list(surroundings.open(3, Told(), total_steps=40).steps())
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Preempted", 15, 15)
    assert (surroundings.steps(2), surroundings.steps(3)) == ([], [])
    assert _train(surroundings, 4).drawn == _uninterrupted()


def test_a_save_that_cannot_end_in_time_is_not_begun_over_what_there_is(surroundings: Surroundings) -> None:
    surroundings.monkeypatch.setenv("SPOT_GRACE_SECONDS", "0.1")
    weights = Weights()

    class Slow(Weights):
        def state_dict(self) -> dict[str, Any]:
            time.sleep(0.15)
            return weights.state_dict()

    training = surroundings.open(1, Slow(), total_steps=40, save_every_steps=5)
    with pytest.raises(Preempted):
        for step in training.steps():
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Preempted", 8, 5)
    assert report["saveSeconds"] > 0.1
    again = surroundings.open(2, Slow(), total_steps=40, save_every_steps=5)
    with pytest.raises(Preempted):
        for _ in again.steps():
            os.kill(os.getpid(), signal.SIGTERM)
    assert surroundings.report()["checkpointStep"] == 6, "with nothing of its own to lose, it tries"


def test_saves_come_by_the_clock_that_the_operator_sets(surroundings: Surroundings) -> None:
    clock = {"now": 1000.0}
    fake = SimpleNamespace(monotonic=lambda: clock["now"], time=time.time)
    surroundings.monkeypatch.setattr(checkpoint, "time", fake)
    surroundings.monkeypatch.setenv("SPOT_CHECKPOINT_INTERVAL_SECONDS", "25")
    training = surroundings.open(1, Weights(), keep=100)
    for step in training.steps():
        clock["now"] += 10.0
        if step == 10:
            break
    assert surroundings.steps(1) == [3, 6, 9]


def test_the_users_own_error_is_told_with_its_class(surroundings: Surroundings) -> None:
    source = LOOP.replace("    time.sleep(0.01)", "    1 / (12 - step)")
    code, _, err = Program("-c", source, env=surroundings.environment(1)).end()
    assert code == 1
    assert "ZeroDivisionError" in err
    report = surroundings.report()
    assert (report["reason"], report["message"]) == ("Failed", "ZeroDivisionError: division by zero")
    assert report["checkpointStep"] == 10


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ({"total_steps": 0}, {}, "total_steps=0 must be above 0"),
        ({"keep": 0}, {}, "keep=0"),
        ({"state": {"model": 3}}, {}, r"state\['model'\] is a int: give an object with state_dict"),
        ({"per_rank": {"sampler": (1, 2)}}, {}, r"per_rank\['sampler'\] is a tuple"),
        ({}, {"SPOT_CHECKPOINT_DIR": ""}, "no checkpoint directory: give Training"),
        ({}, {"SPOT_FENCE": "../x"}, "the fence '../x' cannot name a directory"),
        ({}, {"SPOT_GRACE_SECONDS": "soon"}, "SPOT_GRACE_SECONDS='soon' is no number of seconds"),
        ({}, {"SPOT_ATTEMPT": "-1"}, "SPOT_ATTEMPT='-1' is no whole number"),
        (
            {},
            {"WORLD_SIZE": "2"},
            r"WORLD_SIZE=2, but torch\.distributed is not .* a job of its own, with replicas: 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    surroundings: Surroundings, arguments: dict[str, Any], variables: dict[str, str], words: str
) -> None:
    surroundings.attempt(1, **variables)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
        Training(**{"state": {"weights": Weights()}, **arguments})


def test_a_part_that_the_checkpoint_does_not_know_is_named(surroundings: Surroundings) -> None:
    _train(surroundings, 1)
    surroundings.attempt(2)
    training = Training({"weights": Weights(), "ema": Weights()})
    with pytest.raises(KeyError, match="no state of ema, only of weights"):
        training.load()


def test_closed_it_leaves_signals_and_hook_as_they_were(surroundings: Surroundings) -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook)
    training = surroundings.open(1, Weights())
    assert signal.getsignal(signal.SIGTERM) != before[0]
    training.close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook) == before


def test_a_forked_child_dies_of_the_signal_as_usual(surroundings: Surroundings) -> None:
    surroundings.open(1, Weights())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")  # Python forgets signals that come before a fork is complete
        time.sleep(30)
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    os.close(reader)
    os.close(writer)


def test_a_save_is_told_before_old_checkpoints_are_removed(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = surroundings.open(1, Weights(), keep=1)
    save_steps(training, weights := Weights(), 10)
    remove, told = shutil.rmtree, []

    def note(*arguments: Any, **options: Any) -> None:
        told.append(surroundings.report()["checkpointStep"])
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", note)
    save_steps(training, weights, 20)
    assert told == [20]
    assert surroundings.steps(1) == [20], "and where saves are not in the background, they are gone then"


def test_the_next_save_waits_until_old_checkpoints_are_gone(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is to be room for one more than are kept."""
    training = surroundings.open(1, Weights(), keep=1, background=True)
    save_steps(training, Weights(), 10)
    remove, may = shutil.rmtree, threading.Event()

    def hold(*arguments: Any, **options: Any) -> None:
        assert may.wait(60)
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", hold)
    save_steps(training, Weights(), 20)
    training.step = 30
    save = training.save()
    assert surroundings.path(1, 10).exists()
    assert not surroundings.path(1, 30).exists()
    may.set()
    save.wait()
    training.close()
    assert surroundings.steps(1) == [30]
