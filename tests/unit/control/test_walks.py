"""The machine of :mod:`machine` in thousands of runs, at random: without hypothesis it is some times quicker.

Hypothesis shrinks what it finds, and is kept for that; here a run that fails is shortened step by step.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from spot_training.control import placer
from tests.unit.control.machine import HAPPENINGS, SIZES, FencedMachine, Machine
from tests.unit.control.owner import FencedOwnerMachine, OwnerMachine
from tests.unit.control.rival import FencedRivalMachine, RivalMachine

# As with hypothesis, `make soak` runs more, and others each time.
WALKS = int(os.environ.get("SPOT_TRAINING_RUNS", "350"))
FIRST = random.SystemRandom().randrange(2**32) if "SPOT_TRAINING_RUNS" in os.environ else 0
STEPS = 40

Step = tuple[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails must fail again: nothing may depend on how much else the processor has to do."""
    monkeypatch.setattr(placer, "AHEAD_SECONDS", math.inf)


def drawn(kind: type[Machine], seed: int) -> tuple[int, list[Step]]:
    """A size of the gang, and what happens to it: from some of what may happen, so that runs differ in kind."""
    chance = random.Random(seed)
    every = sorted(name for name in HAPPENINGS if hasattr(kind, name))
    some = chance.sample(every, chance.randint(len(every) // 2, len(every)))
    steps = []
    for _ in range(STEPS):
        name = chance.choice(some)
        steps.append((name, {key: chance.choice(among) for key, among in HAPPENINGS[name].items()}))
    return chance.choice(SIZES), steps


def walk(kind: type[Machine], size: int, steps: Sequence[Step]) -> None:
    """All of it, and then to a good end; raises AssertionError where something does not hold."""
    machine = kind()
    machine.begin(size)
    try:
        for name, arguments in steps:
            getattr(machine, name)(**arguments)
            machine.what_must_always_hold()
    except BaseException:
        machine.loop.close()
        raise
    machine.teardown()


def complaint(kind: type[Machine], size: int, steps: Sequence[Step]) -> str:
    """What does not hold; empty where all does."""
    try:
        walk(kind, size, steps)
    except AssertionError as error:
        return str(error) or repr(error)
    return ""


def shortened(kind: type[Machine], size: int, steps: list[Step]) -> list[Step]:
    """The steps without those that it fails without, too."""
    for index in reversed(range(len(steps))):
        fewer = steps[:index] + steps[index + 1 :]
        if complaint(kind, size, fewer):
            steps = fewer
    return steps


@pytest.mark.parametrize(
    "kind", [Machine, FencedMachine, RivalMachine, FencedRivalMachine, OwnerMachine, FencedOwnerMachine]
)
def test_what_must_always_hold_holds_on_every_walk(kind: type[Machine]) -> None:
    for seed in range(FIRST, FIRST + WALKS):
        size, steps = drawn(kind, seed)
        if complaint(kind, size, steps):
            few = shortened(kind, size, steps)
            told = "\n".join(f"{name} {arguments}" for name, arguments in few)
            pytest.fail(f"seed {seed}, {size} ranks:\n{told}\n{complaint(kind, size, few)}")


def test_the_lease_of_another_machine_of_that_name_says_nothing_of_a_lost_peer() -> None:
    """Found by a walk: the survivor's exit was judged by the Lease that the lost machine's successor had renewed."""
    steps: list[Step] = [
        ("a_machine", {"name": "a2", "what": "dies", "survivor": True}),
        ("things_go_on", {}),
        ("time_passes", {"seconds": 1}),
        ("a_machine", {"name": "a2", "what": "is replaced", "survivor": False}),
        ("look", {}),
    ]
    assert complaint(FencedMachine, 2, steps) == ""


def test_a_gang_whose_pods_were_never_all_made_gives_back_what_it_reserved_for_them() -> None:
    """Found by a walk: the next attempt was refused its own nodes, until something else changed."""
    steps: list[Step] = [
        *[("a_program_fails", {"pick": pick}) for pick in (4, 19, 11)],
        ("a_notice_comes_or_is_withdrawn", {"name": "a2", "seconds": 120}),
        ("the_watch_expires", {}),
        ("look_and_be_killed", {"after": 2}),
        ("pods_start", {}),
    ]
    assert complaint(Machine, 3, steps) == ""


def test_a_peer_that_went_unseen_comes_before_the_failure_that_it_led_to() -> None:
    """Found by a walk: an eviction of which no watch told, and a survivor that ended with it."""
    steps: list[Step] = [
        ("somebody_deletes_a_pod", {"pick": 7, "reason": "EvictionByEvictionAPI", "survivor": True}),
        ("stopping_pods_stop", {"gone": True, "code": 137}),
        ("the_watch_expires", {}),
        ("things_go_on", {}),
        ("time_passes", {"seconds": 61}),
        ("things_go_on", {}),
    ]
    assert complaint(FencedMachine, 3, steps) == ""


def test_a_walk_that_fails_is_told_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Machine) -> None:
        assert not self.sim.job["spec"].get("suspend"), "it was suspended"

    monkeypatch.setattr(Machine, "what_must_always_hold", broken)
    steps: list[Step] = [("look", {}), ("the_user_suspends", {"suspend": True}), ("look", {})]
    assert complaint(Machine, 1, steps).startswith("it was suspended")
    assert shortened(Machine, 1, steps) == [("the_user_suspends", {"suspend": True})]
