"""The library on a volume: what an init container leaves there works alone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spot_training.__main__ import main

ALONE = """
import spot_training.train, sys
from spot_training.train import Training
assert spot_training.train.__file__.startswith(sys.argv[1]), spot_training.train.__file__
training = Training({"x": (dict, lambda state: None)}, total_steps=3, directory=sys.argv[2])
print(list(training.steps()))
"""


def _run(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *words], env=env, text=True, capture_output=True, timeout=60)


def test_what_is_delivered_works_without_anything_else(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    stale = volume / "spot_training" / "train" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    assert main(["library", str(volume)]) == 0
    assert not stale.exists(), "what an older version had is not left"
    assert sorted(path.name for path in (volume / "spot_training").iterdir()) == [
        "__init__.py",
        "py.typed",
        "train",
    ]
    assert not list(volume.rglob("__pycache__"))
    done = _run("-c", ALONE, str(volume), str(tmp_path / "checkpoints"), path=volume)
    assert done.stdout == "[0, 1, 2]\n", done.stderr
    launched = _run("-m", "spot_training.train", "-m", "this", path=volume)
    assert (launched.returncode, "Zen" in launched.stdout) == (0, True), launched.stderr


def test_all_may_read_what_is_delivered(tmp_path: Path) -> None:
    assert main(["library", str(tmp_path)]) == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.py")}
    assert all(mode & 0o444 == 0o444 for mode in modes), [oct(mode) for mode in modes]


def test_where_it_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["library", str(tmp_path / "file")]) == 1
    assert "mount a volume that this user may write" in capsys.readouterr().err
    assert main(["library"]) == 2
    assert "usage: spot-training library DIRECTORY" in capsys.readouterr().err
