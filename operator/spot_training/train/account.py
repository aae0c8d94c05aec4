"""What an attempt has loaded and saved, as it decides by it and as it is told to the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spot_training.train import report
from spot_training.train.report import log

if TYPE_CHECKING:
    from spot_training.train.outcome import Loaded, Saved
    from spot_training.train.problem import Problem


@dataclass
class Account:
    """Steps and times of the newest checkpoint, seconds of the last save and load.

    `own_step` is of the newest checkpoint in this job's own directory, `save_seconds` None while this attempt has
    saved none, `stall_seconds` what the last save has kept the program from its steps, `trouble` why it failed.
    """

    checkpoint_step: int | None = None
    checkpoint_time: float | None = None
    own_step: int | None = None
    load_seconds: float | None = None
    save_seconds: float | None = None
    stall_seconds: float = 0.0
    trouble: Problem | None = None

    def note_loaded(self, loaded: Loaded, seconds: float) -> None:
        """A checkpoint was loaded, in so many seconds."""
        self.load_seconds = seconds
        self.checkpoint_step, self.checkpoint_time = loaded.step, loaded.time
        self.own_step = None if loaded.borrowed else loaded.step

    def note_saved(self, saved: Saved) -> None:
        """A save has ended, well or not; a failure is logged here."""
        self.trouble = saved.problem
        if saved.problem is None:
            self.own_step = self.checkpoint_step = saved.step
            self.checkpoint_time, self.save_seconds = saved.time, saved.seconds
            return
        have = "none yet" if self.checkpoint_step is None else f"step {self.checkpoint_step}"
        words = "could not save step %d: %s; the newest checkpoint is %s"
        facts = {"event": "save-failed", "step": saved.step}
        log.error(words, saved.step, saved.problem.words, have, extra=facts)

    def facts(self) -> dict[str, Any]:
        """The fields of the termination message that are about checkpoints."""
        at, saved = self.checkpoint_time, self.save_seconds is not None
        return {
            "checkpointStep": self.checkpoint_step,
            "checkpointTime": None if at is None else report.format_time(at),
            "saveSeconds": None if self.save_seconds is None else round(self.save_seconds, 3),
            "stallSeconds": round(self.stall_seconds, 3) if saved else None,
            "loadSeconds": None if self.load_seconds is None else round(self.load_seconds, 3),
        }

    def troubles(self) -> dict[str, Any]:
        """Those that are there only while the last save has failed."""
        if self.trouble is None:
            return {}
        full = {"saveTrouble": report.VOLUME_FULL} if self.trouble.full else {}
        return {"message": self.trouble.words, **full}
