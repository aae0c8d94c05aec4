"""A small training program, and ways to run it that end like a container's: killed, signalled, or by itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spot_training.train import Training

OPERATOR = Path(__file__).parents[3] / "operator"
JOB = "20261121T043500Z-0f3c2a4e-7b1d-4a57-9a8e-3f4f0f3c2a4e"


def fence(attempt: int) -> str:
    return f"{JOB}-{attempt:06d}"


class Weights:
    """A state that shows where it comes from: one number for each step, drawn from Python's generator."""

    def __init__(self, padding: int = 0) -> None:
        self.drawn: list[float] = []
        self._padding = "x" * padding

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "padding": self._padding}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.drawn = state["drawn"]


@dataclass
class Surroundings:
    """What the operator gives to an attempt; `open` starts one inside this process."""

    directory: Path
    termination_log: Path
    monkeypatch: pytest.MonkeyPatch

    def attempt(self, number: int, **variables: str) -> None:
        values = {
            "SPOT_CHECKPOINT_DIR": str(self.directory),
            "SPOT_FENCE": fence(number),
            "SPOT_ATTEMPT": str(number),
            "SPOT_TERMINATION_LOG": str(self.termination_log),
            **variables,
        }
        for name, value in values.items():
            self.monkeypatch.setenv(name, value)

    def open(self, number: int, weights: Weights, **arguments: Any) -> Training:
        self.attempt(number)
        return Training({"weights": weights}, **arguments)

    def report(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.termination_log.read_text())
        return record

    def environment(self, number: int) -> dict[str, str]:
        """The variables of an attempt, for a process of its own."""
        self.attempt(number)
        return {name: value for name, value in os.environ.items() if name.startswith("SPOT_")}

    def path(self, number: int, step: int) -> Path:
        return self.directory / fence(number) / f"step-{step:012d}"

    def steps(self, number: int) -> list[int]:
        """The steps of which an attempt's directory holds checkpoints."""
        found = (self.directory / fence(number)).glob("step-*/manifest.json")
        return sorted(int(path.parent.name.removeprefix("step-").partition(".")[0]) for path in found)


def save_steps(training: Training, weights: Weights, *steps: int) -> None:
    """Load, then save at each of these steps, with weights that tell the step."""
    training.load()
    for step in steps:
        training.step = step
        weights.drawn = [float(step)]
        random.random()  # so that no file of one checkpoint is like another's
        training.save().wait()


class Program:
    """A Python interpreter in a process of its own, with the words that follow ``python``."""

    def __init__(
        self,
        *words: str,
        env: Mapping[str, str],
        stdin: int | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": f"{OPERATOR}{os.pathsep}{Path(__file__).parents[3]}", **env},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )

    def read_until(self, wanted: str) -> None:
        """Read standard output until a line says `wanted`."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if line.strip() == wanted:
                return
        raise AssertionError(f"never said {wanted!r}, but {seen}; stderr: {self.end()[2]}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: exit code, standard output, standard error."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err
