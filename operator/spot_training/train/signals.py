"""SIGTERM and SIGINT: being told to stop.

A handler runs between two instructions of the program, perhaps in the middle of an optimizer's step: nothing
can be saved there. It only notes that and when the first signal came. The program asks between its steps.
Further signals change nothing, so an impatient sender cannot break the save it is waiting for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spot_training.train.report import log

if TYPE_CHECKING:
    from types import FrameType

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
EXIT_PREEMPTED: Final = 143
"""128 + SIGTERM: what a process gives that SIGTERM has ended."""


class Preempted(SystemExit, KeyboardInterrupt):
    """The program was told to stop, has saved, and ends with exit code 143.

    A SystemExit, so that the interpreter ends quietly with that code; a KeyboardInterrupt too, for programs
    that clean up in ``except KeyboardInterrupt``.
    """


@dataclass(frozen=True)
class Told:
    """The first signal: its name, and when it came, in seconds of the monotonic clock."""

    name: str
    at: float


class StopSignals:
    """Notes the first SIGTERM or SIGINT between `install` and `restore`."""

    def __init__(self) -> None:
        self.told: Told | None = None
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Take over the signals; in a thread that may not (not the main one) only say that they are not noticed."""
        if threading.current_thread() is not threading.main_thread():
            words = "not in the main thread: SIGTERM and SIGINT are not noticed"
            log.warning(words, extra={"event": "no-signals"})
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to whom they belonged before."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that was forked with our handler, such as a data loader's worker: it is to die as usual.
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.told is None:
            self.told = Told(signal.Signals(number).name, time.monotonic())
