"""SIGKILL at random instants of saving, thousands of times, on a real file system.

Each trial is an attempt of its own, forked from this process: it loads what the one before has left, tells what that
was, and saves in a loop, telling when it begins a save and when the save's handle has acknowledged it. It is killed at
a random instant within the first few saves, or while it still opens the directory and loads.
"""

import json
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.checkpoint.subject import Pattern, be_quiet, open_training

_SIZES = (2_000, 50_000, 1_000_000)
_SAVES = 3.0
"""A trial is killed within the time of so many saves, after it has loaded."""
_OPENING = 8
"""One trial in so many is killed while it opens the directory and loads."""


@dataclass
class Kills:
    """What many trials have shown; the lists have a line for each trial that shows it."""

    trials: int = 0
    loads: int = 0
    acknowledged: int = 0
    within_a_save: int = 0
    torn_loads: list[str] = field(default_factory=list)
    older_than_acknowledged: list[str] = field(default_factory=list)
    not_loaded: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Pace:
    """How long opening and saving have taken lately, in seconds: by that the instants are drawn."""

    opening: deque[float] = field(default_factory=lambda: deque([0.02], maxlen=20))
    saving: deque[float] = field(default_factory=lambda: deque([0.02], maxlen=20))


@dataclass
class _Trial:
    """What one attempt has told before it was killed."""

    loaded: dict[str, Any] | None = None
    begun: int = 0
    acknowledged: int = 0
    saves: int = 0
    failure: str | None = None

    def hear(self, line: str, pace: _Pace) -> None:
        told = json.loads(line)
        match told.pop("told"):
            case "loaded":
                self.loaded = told
                pace.opening.append(told["seconds"])
            case "begun":
                self.begun = told["step"]
            case "acknowledged":
                self.acknowledged = told["step"]
                self.saves += 1
                pace.saving.append(told["seconds"])
            case _:
                self.failure = told["error"]


Tell = Callable[..., None]
Train = Callable[..., None]
"""What a trial does: (directory, number of the trial, how it tells, saves=whether it is to save until it is killed)."""


def kill_trials(directory: Path, count: int, seed: int, train: Train | None = None) -> Kills:
    """Run `count` trials in `directory`, which is to be empty; every second one saves in the background.

    `train` None is one process without torch. One of several ranks stays in the process group of the trial; then all
    are killed, or only the one that the trial was begun with.
    """
    be_quiet()
    train = train or _train
    chance = random.Random(seed)
    kills, pace = Kills(), _Pace()
    acknowledged = begun = 0  # in all trials so far
    began = time.monotonic()
    for number in range(1, count + 1):
        trial = _run(directory, number, chance, pace, train)
        kills.trials += 1
        kills.acknowledged += trial.saves
        kills.within_a_save += trial.begun > trial.acknowledged
        _judge(kills, trial, f"trial {number}", acknowledged, begun)
        acknowledged, begun = max(acknowledged, trial.acknowledged), max(begun, trial.begun)
    trial = _run(directory, count + 1, None, pace, train)  # to see what the last one has left
    _judge(kills, trial, "the last load", acknowledged, begun)
    assert kills.loads, f"no trial has loaded anything: {kills.not_loaded}"
    kills.seconds = time.monotonic() - began
    return kills


def _judge(kills: Kills, trial: _Trial, name: str, acknowledged: int, begun: int) -> None:
    if trial.failure:
        kills.not_loaded.append(f"{name}: {trial.failure}")
    loaded = trial.loaded
    if loaded is None:
        return
    kills.loads += 1
    said = f"{name} loaded step {loaded['step']}; acknowledged {acknowledged}, begun {begun}"
    if not loaded["whole"] or loaded["step"] > begun:
        kills.torn_loads.append(said)
    if loaded["step"] < acknowledged:
        kills.older_than_acknowledged.append(said)
    if loaded["passed_over"]:
        kills.passed_over.append(f"{said}: {loaded['passed_over']}")


def _run(directory: Path, number: int, chance: random.Random | None, pace: _Pace, train: Train) -> _Trial:
    """One attempt, killed by `chance`; where that is None it only loads."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _child(writer, lambda tell: train(directory, number, tell, saves=chance is not None))
    os.setpgid(pid, pid)  # whoever comes first
    os.close(writer)
    trial = _Trial()
    with os.fdopen(reader) as lines:
        if chance:
            kill = os.killpg
            if chance.randrange(_OPENING) == 0:
                time.sleep(chance.uniform(0, max(pace.opening)))
            elif line := lines.readline():
                trial.hear(line, pace)
                time.sleep(chance.uniform(0, _SAVES * max(pace.saving)))
                kill = chance.choice([os.kill, os.killpg])
            kill(pid, signal.SIGKILL)
        for line in lines:
            trial.hear(line, pace)
    os.waitpid(pid, 0)
    return trial


def _child(writer: int, work: Callable[[Callable[..., None]], None]) -> None:
    """What the forked process does; it never returns."""

    def tell(word: str, **facts: Any) -> None:
        os.write(writer, json.dumps({"told": word, **facts}).encode() + b"\n")

    try:
        work(tell)
    except BaseException as error:
        tell("failed", error=repr(error))
    finally:
        os._exit(0)


def _train(directory: Path, number: int, tell: Callable[..., None], *, saves: bool) -> None:
    began = time.monotonic()
    background = number % 2 == 0
    state = Pattern(_SIZES[number % len(_SIZES)])
    training = open_training(directory, number, state, background=background)
    step = training.load()
    facts = {"whole": state.is_of(step), "passed_over": [item.reason for item in training.passed_over]}
    tell("loaded", step=step, seconds=time.monotonic() - began, **facts)
    while saves:
        began = time.monotonic()
        training.step += 1
        state.become(training.step)
        tell("begun", step=training.step)
        save = training.save()
        if background:
            state.become(training.step + 1_000_000)  # what the next step would do meanwhile
        save.wait()
        tell("acknowledged", step=training.step, seconds=time.monotonic() - began)
