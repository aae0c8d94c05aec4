"""The program that is tried: its state tells of which step it is, and whether all of it is of that step."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from spot_training.train import Training

JOB = "20261121T043500Z-5d1f7c2e-90ab-4c1e-8a57-3f4f0f3c2a4e"


def fence(attempt: int) -> str:
    """As the operator names attempts."""
    return f"{JOB}-{attempt:06d}"


class Pattern:
    """A state of about `size` characters that follows from the step alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._state: dict[str, Any] = {}
        self.become(0)

    def become(self, step: int) -> None:
        """Be the state after `step` steps."""
        self._state = _pattern(step, self._size)

    def is_of(self, step: int) -> bool:
        """Whether this is the state after `step` steps, in every character, of whatever size it was saved."""
        return self._state == _pattern(step, self._state["size"])

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self._state = state


def _pattern(step: int, size: int) -> dict[str, Any]:
    data = hashlib.shake_128(b"step %d" % step).hexdigest(size // 2)
    return {"step": step, "size": size, "data": data}


class State(Protocol):
    """What is tried: it can be made the state after any step, and tell whether it is that."""

    def become(self, step: int) -> None: ...

    def is_of(self, step: int) -> bool: ...

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> None: ...


def open_training(directory: Path, attempt: int, state: State, **arguments: Any) -> Training:
    """An attempt in this process, as the operator starts one."""
    os.environ |= {
        "SPOT_CHECKPOINT_DIR": str(directory),
        "SPOT_FENCE": fence(attempt),
        "SPOT_ATTEMPT": str(attempt),
        "SPOT_TERMINATION_LOG": os.devnull,
    }
    return Training({"pattern": state}, **arguments)


@contextmanager
def unflushed() -> Iterator[None]:
    """Where the disk is not what is tried: without the seconds that flushing takes."""
    with patch.object(os, "fsync", lambda _: None):
        yield


def be_quiet() -> None:
    """Keep the library's log lines of thousands of attempts from the terminal."""
    log = logging.getLogger("spot_training.train")
    log.handlers = [logging.NullHandler()]
    log.propagate = False
