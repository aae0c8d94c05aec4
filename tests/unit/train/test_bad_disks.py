"""Disks and network file systems that fail for a moment, for good, or hang: training goes on, and nothing is lost."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot_training.train import CheckpointError, patience
from tests.unit.train.programs import OPERATOR, Program, Surroundings, Weights, fence, save_steps

Refuse = Callable[[str, int, int], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Lets reads of paths that have the given words in them fail, so many times, with the error of that number."""
    monkeypatch.setattr(patience, "_PAUSES", (0.001, 0.001, 0.001))
    read, read_bytes = os.preadv, Path.read_bytes

    def begin(words: str, times: int, code: int) -> None:
        left = times

        def fail(path: str) -> None:
            nonlocal left
            if words in path and left:
                left -= 1
                raise OSError(code, os.strerror(code), path)

        def refusing(descriptor: int, *arguments: Any) -> int:
            fail(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            return read(descriptor, *arguments)

        def refusing_bytes(path: Path) -> bytes:
            fail(str(path))
            return read_bytes(path)

        monkeypatch.setattr(os, "preadv", refusing)
        monkeypatch.setattr(Path, "read_bytes", refusing_bytes)

    return begin


def _saved(surroundings: Surroundings) -> None:
    weights = Weights()
    save_steps(surroundings.open(1, weights), weights, 40, 50)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("file", ["state.json", "rank-00000.json", "manifest.json"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_read_that_fails_for_a_moment_is_tried_again(
    surroundings: Surroundings, refuse: Refuse, code: int, file: str, times: int
) -> None:
    _saved(surroundings)
    refuse(f"50/{file}", times, code)
    loaded = Weights()
    training = surroundings.open(2, loaded)
    assert (training.load(), loaded.drawn) == (50, [50.0])
    assert training.passed_over == []


@pytest.mark.parametrize("file", ["state.json", "manifest.json"])
def test_what_cannot_be_read_is_passed_over_and_stays_as_if_it_were_whole(
    surroundings: Surroundings, refuse: Refuse, file: str
) -> None:
    _saved(surroundings)
    refuse(f"50/{file}", 1_000, errno.EIO)
    loaded = Weights()
    training = surroundings.open(2, loaded)
    assert (training.load(), loaded.drawn) == (40, [40.0])
    [passed_over] = training.passed_over
    assert passed_over.checkpoint == f"{fence(1)}/step-000000000050"
    assert passed_over.reason.startswith("cannot be read: ")
    save_steps(training, loaded, 60)
    assert (surroundings.steps(1), surroundings.steps(2)) == ([40, 50], [60]), "two that were read are kept"
    save_steps(training, loaded, 70)
    assert (surroundings.steps(1), surroundings.steps(2)) == ([], [60, 70])
    assert list(surroundings.directory.rglob("damaged-*")) == []


def test_where_the_only_checkpoint_cannot_be_read_nothing_begins_anew(
    surroundings: Surroundings, refuse: Refuse
) -> None:
    weights = Weights()
    save_steps(surroundings.open(1, weights), weights, 50)
    refuse("50/manifest.json", 1_000, errno.EIO)
    with pytest.raises(CheckpointError, match=r"none is whole.*could not be read when it was listed"):
        surroundings.open(2, Weights()).load()
    assert surroundings.steps(1) == [50]


def test_a_directory_that_goes_and_comes_back_costs_saves_never_the_training(
    surroundings: Surroundings,
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights)
    save_steps(training, weights, 10)
    away = surroundings.directory.with_name("away")
    surroundings.directory.rename(away)
    training.step = 19
    training.step_done()
    training.save()
    report = surroundings.report()
    assert (report["step"], report["checkpointStep"]) == (20, 10)
    assert "No such file or directory" in report["message"]
    away.rename(surroundings.directory)
    training.save().wait()
    assert surroundings.steps(1) == [10, 20]


ON_A_REAL_FILE_SYSTEM = """
import os, subprocess
from pathlib import Path
from spot_training.train import CheckpointError, Training
from tests.unit.train.programs import Weights, save_steps

directory = Path(os.environ["SPOT_CHECKPOINT_DIR"])
directory.mkdir()

def system(*words):
    subprocess.run(words, check=True)

def attempt_save(step):
    training.step = step
    try:
        training.save().wait()
        print(step, "saved")
    except CheckpointError as error:
        print(step, type(error).__name__, str(error).rpartition("] ")[2].partition(":")[0])

system("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory))
weights = Weights(padding=200_000)
training = Training({"weights": weights})
save_steps(training, weights, 10)
filler = directory / "filler"
try:
    with filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
except OSError:
    pass
attempt_save(20)
filler.unlink()
attempt_save(20)
system("mount", "-o", "remount,ro", str(directory))
attempt_save(30)
system("mount", "-o", "remount,rw", str(directory))
attempt_save(30)
system("umount", "-l", str(directory))
attempt_save(40)
"""


def _in_a_mount_namespace(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--map-root-user", "--mount", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_file_system_that_is_full_read_only_or_gone_costs_saves_never_the_training(
    surroundings: Surroundings,
) -> None:
    path = f"{OPERATOR}{os.pathsep}{Path(__file__).parents[3]}"
    env = {**os.environ, **surroundings.environment(1), "PYTHONPATH": path}
    ended = _in_a_mount_namespace(sys.executable, "-c", ON_A_REAL_FILE_SYSTEM, env=env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "20 VolumeFullError No space left on device",
        "20 saved",
        "30 CheckpointError Read-only file system",
        "30 saved",
        "40 CheckpointError No such file or directory",
    ]


HANGING = """
import os, threading, time
from spot_training.train import Training
from tests.unit.train.programs import Weights, save_steps

weights = Weights()
training = Training({"weights": weights}, save_every_steps=20, background=BACKGROUND)
save_steps(training, weights, 10)
training.step = 11
flush = os.fsync

def hang(descriptor):
    if threading.current_thread() is not threading.main_thread():
        print("hanging", flush=True)
        time.sleep(3600)

os.fsync = hang
try:
    while True:
        training.step_done()
        time.sleep(0.001)
except KeyboardInterrupt:
    print("cleaned up", flush=True)
    raise
"""


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("save_first", [True, False])
def test_told_to_stop_while_the_disk_hangs_it_leaves_within_its_grace(
    surroundings: Surroundings, background: bool, save_first: bool
) -> None:
    source = HANGING.replace("BACKGROUND", str(background))
    if not save_first:
        source = source.replace("save_every_steps=20", "save_every_steps=1000").replace(
            "os.fsync = hang", "os.fsync = hang; print('ready', flush=True)"
        )
    env = {**surroundings.environment(1), "SPOT_GRACE_SECONDS": "3"}
    program = Program("-c", source, env=env)
    program.read_until("hanging" if save_first else "ready")
    told = time.monotonic()
    program.signal(signal.SIGTERM)
    code, out, err = program.end()
    took = time.monotonic() - told
    assert code == 143, err
    assert "has not ended in time" in err
    assert out.splitlines()[-1] == "cleaned up"
    report = surroundings.report()
    assert (report["reason"], report["checkpointStep"]) == ("Preempted", 10)
    assert took < 30, f"{took:.1f} s of 3"
