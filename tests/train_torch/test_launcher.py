"""The launcher with torch: stopped while torch is being imported, and while several ranks train."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

IMPORTING = """
import torch
print("imported", flush=True)
import time
time.sleep(60)
"""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_importing_torch(pid: int) -> bool:
    try:
        return any("libtorch_cpu" in Path(f"/proc/{child}/maps").read_text() for child in _children(pid))
    except FileNotFoundError:
        return False


def test_a_stop_while_torch_is_being_imported_ends_it_at_once(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "termination-log"
    script.write_text(IMPORTING)
    log.touch()
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "spot_training.train", str(script)],
        env={**os.environ, "PYTHONPATH": str(root / "operator"), "SPOT_TERMINATION_LOG": str(log)},
        stdout=subprocess.PIPE,
        text=True,
    )
    while not _is_importing_torch(process.pid):
        assert process.poll() is None, f"ended by itself: {process.communicate()}"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, log.read_text()) == (143, '{"reason":"Preempted"}\n'), out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("background", [(), ("--background",)])
def test_launched_it_is_stopped_and_resumed_as_without(
    make_job: Callable[..., Any], number: signal.Signals, background: tuple[str, ...]
) -> None:
    expected = make_job(2, "--steps", "40").finish()
    job = make_job(
        2, "--steps", "40", "--seconds-per-step", "0.02", *background, launcher=["-m", "spot_training.train"]
    )
    ranks = job.interrupt(13, number, rank=1)
    ends = [rank.end() for rank in ranks]
    assert [code for code, _ in ends] == [143, 143], ends
    assert {rank.report()["reason"] for rank in ranks} == {"Preempted"}
    assert job.finish() == expected
