"""`make test`: all checks and tests, in parts that run side by side: `python -m tests.kit.suite [--keep]`.

Most of what the tests on the cluster do is to wait, and what they share they take in turns (`turns.py`). Each part is
a process of its own whose output is in `build/NAME.log`. Of what runs on the cluster the lines are shown as they come,
with the name of the part before them; of the rest what it said is shown when it fails. How each part ended is told at
the end.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from tests.kit import cluster, install
from tests.kit.process import bound
from tests.kit.shell import say

LOGS: Final = install.ROOT / "build"
CLOSING_LINES: Final = 30
LOOK_SECONDS: Final = 0.3
CLEARING_SECONDS: Final = 120.0
"""How long a part may take to clear away what it has begun, when it is told to end."""


class Told(BaseException):
    """By that signal: to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Part:
    """A command with its output in a file, which is shown as it grows, or when it has failed."""

    name: str
    words: Sequence[str]
    shown: bool = False
    stop: signal.Signals = signal.SIGINT
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    _read: int = 0

    def __post_init__(self) -> None:
        # A shell has what it starts in the background ignore the signal with which it is told to end.
        words = bound(["env", "--default-signal=INT", *self.words], by=self.stop)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        say(f"==> {self.name} begins; {self.log.relative_to(install.ROOT)} has what it says")

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def look(self) -> None:
        """Show what it has said since the last time, and whether it has ended."""
        ended = self.process.poll() is not None
        if self.shown:
            self._show(ended)
        if ended and self.ended is None:
            self.ended = time.monotonic()
            if self.process.returncode and not self.shown:
                self._show(ended)
            say(f"==> {self.outcome}")

    @property
    def outcome(self) -> str:
        lasted = (self.ended or time.monotonic()) - self.began
        return f"{self.name} ended with {self.process.returncode} after {lasted:.0f} s"

    def _show(self, everything: bool) -> None:
        with self.log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        whole = len(new) if everything else new.rfind(b"\n") + 1
        self._read += whole
        for line in new[:whole].decode(errors="replace").splitlines():
            say(f"{self.name:7} | {line}")

    def closing_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-CLOSING_LINES:])


def lint() -> Part:
    """Everything that is found without running anything."""
    # make passes SIGTERM on to what it has begun; SIGINT it takes for a terminal's, which all of them have had.
    return Part("lint", ["make", "--no-print-directory", "lint"], stop=signal.SIGTERM)


def tests(name: str, *options: str, shown: bool = False) -> Part:
    """The tests of the folder of that name as a part."""
    return Part(name, [sys.executable, "-m", "pytest", *options, f"tests/{name}"], shown)


@contextmanager
def parts() -> Iterator[list[Part]]:
    """A list for what has been begun, which is looked at by itself.

    At the end of the block, however it ends, none of it runs any more.
    """
    begun: list[Part] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            for part in list(begun):
                part.look()

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield begun
    finally:
        over.set()
        watching.join()
        for part in begun:
            if part.process.poll() is None:
                part.process.send_signal(part.stop)
        deadline = time.monotonic() + CLEARING_SECONDS
        for part in begun:
            try:
                part.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait()
            part.look()


def run() -> int:
    """Everything; the exit code of the first part that failed, or 0."""
    LOGS.mkdir(exist_ok=True)
    with parts() as begun:
        begun.append(lint())
        begun.append(tests("unit"))
        cluster.up()
        # Not before: they would install packages at the same time, on a machine that has nothing yet.
        begun.append(tests("image", "--capture=no"))
        begun.append(tests("foreign"))
        install.up()
        os.environ[install.INSTALLED] = "1"
        begun.append(tests("e2e", "--durations=15", shown=True))
        begun.append(tests("cluster", "--durations=15", shown=True))
        while any(part.ended is None for part in begun):
            time.sleep(LOOK_SECONDS)
    for part in begun:
        say(f"\n==> {part.outcome}; its closing lines:\n{part.closing_lines()}")
    return next((part.process.returncode for part in begun if part.process.returncode), 0)


def _told(number: int, _: FrameType | None) -> None:
    # Once: what is cleared away then is not to be disturbed.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Told(number)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.suite", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    keep = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _told)
    began = time.monotonic()
    try:
        code = run()
    except Told as told:
        say(f"==> told to end ({told})")
        code = 128 + told.number
    finally:
        if not keep:
            cluster.down(with_engine=True)
    say(f"==> {'all passed' if code == 0 else f'FAILED ({code})'}, {time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
