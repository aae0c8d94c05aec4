"""What a process has begun does not outlive it, however it ends."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.kit.process import bound

PARENT = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"


def name(pid: int) -> str:
    """What runs under that number; empty where nothing does any more."""
    try:
        called, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except FileNotFoundError:
        return ""
    return "" if rest.split()[0] in "ZX" else called


def until(condition: Callable[[], bool], pid: int) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"{pid} is {name(pid)!r}"
        time.sleep(0.01)


def test_a_process_that_is_bound_goes_with_the_one_that_is_killed() -> None:
    words = [sys.executable, "-c", PARENT, *bound(["sleep", "60"])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: name(child) == "sleep", child)
        parent.kill()
        until(lambda: not name(child), child)
