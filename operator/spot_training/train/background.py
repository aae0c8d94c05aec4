"""Work that goes on while the program trains: in a thread, with no word between the ranks from there.

What is to be done is a generator: it yields functions, the slow part, which touch no other rank, and speaks with the
other ranks in between. The functions run in a thread, one after another; all that speaks with the ranks runs where the
program calls, between two steps, on all ranks at the same point. So no collective of ours ever crosses one of the
program's, and no second process group is needed. One process alone has nobody to speak with: there the thread goes
through to the end by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar

_OURS: Final = "spot-training-"
T = TypeVar("T")

Steps = Generator[Callable[[], Any], Any, T]
"""Yields slow functions, is sent what they return, and returns a result."""


def run_here(steps: Steps[T], job: Callable[[], Any] | None = None) -> T:
    """All of it, now, in this thread; from `job` on where `steps` has already yielded that."""
    job = job or next(steps)
    while True:
        try:
            job = steps.send(job())
        except StopIteration as end:
            value: T = end.value
            return value


class Background(Generic[T]):
    """`steps` under way. What comes before its first function has run, in the caller's thread, when this is made.

    `alone`: whether this process is the only rank. All ranks call `advance` and `finish` at the same points. `name` is
    for the thread's.
    """

    def __init__(self, steps: Steps[T], *, alone: bool, name: str = "save") -> None:
        self._steps = steps
        self._alone = alone
        self._name = f"{_OURS}{name}"
        self._start(next(steps))

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work. Ranks differ; `advance` is for when all have answered no."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for this rank's thread, for so long at the most."""
        self._thread.join(seconds)

    def advance(self) -> tuple[T] | None:
        """Go on where no rank is busy; returns the result, in a tuple, where there is nothing left to do.

        Waits for the thread. Raises what the functions, or the speaking in between, have raised.
        """
        self._thread.join()
        if self._error:
            raise self._error
        if self._alone:
            return (self._value,)
        try:
            self._start(self._steps.send(self._value))
        except StopIteration as end:
            return (end.value,)
        return None

    def finish(self) -> T:
        """Wait until all is done, and return the result. Raises as `advance` does."""
        while (result := self.advance()) is None:
            pass
        return result[0]

    def _start(self, job: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        # Not a daemon: one that the interpreter kills on its way out, within native code, would abort the process;
        # and where the program ends by an error of its own, what it had saved before is still brought to the disk.
        self._thread = threading.Thread(target=self._run, args=(job,), name=self._name)
        self._thread.start()

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._value = run_here(self._steps, job) if self._alone else job()
        except BaseException as error:  # raised where the program waits or comes by next
            self._error = error


def end_within(seconds: float, code: int) -> None:
    """See to it that this process ends, with exit code `code`, though a disk may hang: the interpreter would wait.

    The program itself, which may clean up, is waited for; then the threads that still write, for `seconds` from now at
    the most.
    """
    writing = [thread for thread in threading.enumerate() if thread.name.startswith(_OURS)]
    if writing:
        arguments = (writing, time.monotonic() + seconds, code)
        threading.Thread(target=_end, args=arguments, name="spot-training-end", daemon=True).start()


def _end(writing: list[threading.Thread], at: float, code: int) -> None:
    threading.main_thread().join()
    for thread in writing:
        thread.join(max(0.0, at - time.monotonic()))
    if any(thread.is_alive() for thread in writing):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
