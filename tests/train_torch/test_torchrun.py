"""The launcher, torchrun's own agent, and ranks that it starts: on two nodes, and in a save longer than it waits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "spot_training.train", "-m", "spot_training.train.torchrun"]

# Debian's torch is built without libuv, which torchrun's agents need to meet over TCP: here they meet in a file.
MEETING = {
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_CONF": "store_type=file",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "USE_LIBUV": "0",
}
AGENT_WAITS = 30  # seconds, by itself

SLOW = f"""
import signal, time
from spot_training.train import Training

class Slow:
    def state_dict(self):
        if training.stopping:
            time.sleep({AGENT_WAITS + 2})
        return {{"value": 1}}
    def load_state_dict(self, state):
        pass

training = Training({{"slow": Slow()}}, total_steps=100000, save_every_seconds=3600)
for step in training.steps():
    if step == 2:
        print("training", flush=True)
    time.sleep(0.02)
"""


Stopping = tuple[subprocess.Popen[str], Path, list[str]]


@pytest.fixture(scope="module", autouse=True)
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopping]:
    """A program in its slow save, its termination log, and what it said: what else is tested here goes on meanwhile."""
    directory = tmp_path_factory.mktemp("stopping")
    script, log = directory / "script.py", directory / "termination-log"
    script.write_text(SLOW)
    log.touch()
    process = subprocess.Popen(
        [sys.executable, *LAUNCHER, str(script)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "operator"),
            "SPOT_CHECKPOINT_DIR": str(directory / "checkpoints"),
            "SPOT_TERMINATION_LOG": str(log),
            "SPOT_GRACE_SECONDS": str(2 * AGENT_WAITS),
            **MEETING,
            "PET_LOCAL_ADDR": "127.0.0.1",
            "PET_RDZV_ENDPOINT": str(directory / "meeting"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    heard = []
    for line in process.stdout:
        heard.append(line)
        if line == "training\n":
            break
    else:
        pytest.fail(f"it never came to train: {''.join(heard)}")
    process.send_signal(signal.SIGTERM)
    yield process, log, heard
    process.kill()
    process.wait()


def test_two_nodes_of_two_ranks_are_stopped_and_go_on_where_they_were(
    make_job: Callable[..., Any], tmp_path: Path
) -> None:
    expected = make_job(4, "--steps", "40").finish()
    job = make_job(
        2,
        *("--steps", "40", "--seconds-per-step", "0.05"),
        launcher=LAUNCHER,
        variables={**MEETING, "PET_NPROC_PER_NODE": "2", "PET_RDZV_ENDPOINT": str(tmp_path / "meeting")},
    )
    ranks = job.interrupt(13, signal.SIGTERM, rank=1)
    ranks[0].process.send_signal(signal.SIGTERM)  # as the operator stops the rest of a gang
    ends = [rank.end() for rank in ranks]
    assert [code for code, _ in ends] == [143, 143], ends
    reports = [rank.report() for rank in ranks]
    assert {report["reason"] for report in reports} == {"Preempted"}, reports
    [stopped_at] = {(report["step"], report["checkpointStep"]) for report in reports}
    assert stopped_at[0] == stopped_at[1] >= 13
    assert job.finish() == expected
    assert job.attempts[-1][0].report()["resumedStep"] == stopped_at[0]


def test_a_save_that_takes_longer_than_torchrun_waits_is_finished_within_the_grace(
    stopping: Stopping,
) -> None:
    process, log, heard = stopping
    output, _ = process.communicate(timeout=4 * AGENT_WAITS)
    said = json.loads(log.read_text())
    assert (process.returncode, said["reason"]) == (143, "Preempted"), "".join(heard) + output
    assert said["checkpointStep"] == said["step"] >= 2
