"""The library as users get it: built into a wheel, installed alone, on the oldest Python that it is for, too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OLDEST = "3.10"

SCRIPT = """
import sys
from spot_training.train import Training
assert sys.prefix in sys.modules["spot_training"].__file__, sys.modules["spot_training"].__file__
training = Training({"x": (dict, lambda state: None)}, total_steps=3, directory=sys.argv[1], compress="gzip")
print(list(training.steps()), sys.version_info[:2])
"""


def _pythons() -> list[str]:
    """The Python that runs this, and the oldest where there is one: as a command, or by way of pyenv."""
    found = [sys.executable]
    for more in ({}, {"PYENV_VERSION": OLDEST}):
        words = [f"python{OLDEST}", "-c", "import sys; print(sys.executable)"]
        try:
            asked = subprocess.run(words, env=os.environ | more, text=True, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return [*found, asked.stdout.strip()]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes beside what it builds."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "operator", source / "operator", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    words = ["wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(directory)]
    _run(sys.executable, "-m", "pip", *words, source)
    [built] = directory.glob("*.whl")
    return built


def _run(*words: str | Path, **variables: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(words, env=env | variables, cwd="/", text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("python", _pythons(), ids=os.path.basename)
def test_installed_alone_it_trains_launches_and_delivers(wheel: Path, tmp_path: Path, python: str) -> None:
    place = tmp_path / "venv"
    _run(python, "-m", "venv", "--without-pip", place)
    # Not --no-deps: what it needs it would look for, and find nowhere.
    _run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--no-index", wheel)
    script, log = tmp_path / "script.py", tmp_path / "termination-log"
    script.write_text(SCRIPT)
    log.touch()
    words = ["-m", "spot_training.train", str(script), str(tmp_path / "checkpoints")]
    launched = [str(place / "bin" / "python"), *words]
    version = _run(python, "-c", "import sys; print(sys.version_info[:2])")
    assert _run(*launched, SPOT_TERMINATION_LOG=str(log)) == f"[0, 1, 2] {version}"
    assert '"reason":"Completed"' in log.read_text()
    assert _run(*launched, SPOT_TERMINATION_LOG=str(log)) == f"[] {version}", "resumed"
    _run(place / "bin" / "spot-training", "library", tmp_path / "volume")
    assert (tmp_path / "volume" / "spot_training" / "train" / "launcher.py").is_file()
