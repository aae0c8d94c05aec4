"""What is wrong with a save or a load: in words for people, and whether the volume is full, which somebody can mend."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, Final

from spot_training.train import report
from spot_training.train.ranks import is_lost_peer

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class CheckpointError(Exception):
    """No checkpoint could be saved, or none could be loaded although there are some."""


class VolumeFullError(CheckpointError):
    """There is no room on the volume that holds the checkpoints, or its quota is used up."""


@dataclass(frozen=True)
class Problem:
    """Goes from rank to rank; `full`: the volume has no room."""

    words: str
    full: bool = False

    @classmethod
    def of(cls, error: BaseException, before: str = "") -> Problem:
        """That of an error which came while the checkpoint directory was read or written."""
        full = isinstance(error, VolumeFullError) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
        return cls(f"{before}{in_words(error)}", full)

    def after(self, before: str) -> Problem:
        """The same, with words before it."""
        return Problem(f"{before}{self.words}", self.full)

    def error(self) -> CheckpointError:
        """The exception for it."""
        return (VolumeFullError if self.full else CheckpointError)(self.words)


def in_words(error: BaseException) -> str:
    """An error in its own words; the name of its class where those would say nothing."""
    return str(error) or type(error).__name__


def report_of(error: BaseException, told: dict[str, Any] | None) -> tuple[str, str] | None:
    """How a program that ends by this error is told to have ended: a reason and a message.

    `told` is the message so far. None: a failure that another process of this container has told is the cause, and
    this is its consequence.
    """
    if isinstance(error, KeyboardInterrupt):
        return report.PREEMPTED, "interrupted within a step"
    if is_lost_peer(error):
        known = told is not None and told["reason"] in report.FAILURES
        return None if known else (report.PEER_LOST, str(error))
    reason = report.VOLUME_FULL if isinstance(error, VolumeFullError) else report.FAILED
    return reason, f"{type(error).__name__}: {error}"
