"""How loads and saves have ended, as the program and the operator are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spot_training.train.problem import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spot_training.train.problem import Problem


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that was not whole: ``<fence>/step-...`` and why."""

    checkpoint: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was loaded: `time` is when it was saved, in seconds since the epoch."""

    step: int
    time: float
    attempt: int
    borrowed: bool
    extras: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """How a save ended: `seconds` of rank 0, `time` since the epoch, `problem` None where it succeeded."""

    step: int
    seconds: float
    time: float
    problem: Problem | None


class Save:
    """A save that has been begun. In the background it goes on while the program does."""

    def __init__(self, step: int, settle: Callable[[], None]) -> None:
        self.step: int = step
        self.saved: Saved | None = None
        self._settle = settle

    def wait(self) -> float:
        """Wait until the checkpoint is on the disk, and return the seconds that the save took.

        From then on, and not before, it is certain that it is not lost. With several ranks and saves in the
        background, all wait at the same point. Raises CheckpointError where it could not be saved, VolumeFullError
        where that was for want of room; earlier checkpoints are untouched then.
        """
        if self.saved is None:
            self._settle()
        if self.saved is None:
            raise CheckpointError(f"could not save step {self.step}: the save was broken off by an error")
        if self.saved.problem:
            raise self.saved.problem.after(f"could not save step {self.step}: ").error()
        return self.saved.seconds
