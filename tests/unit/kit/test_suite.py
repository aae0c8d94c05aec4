"""Parts that run side by side: all that they say is kept, none outlives the whole, and one that fails fails all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit import cluster, install, suite
from tests.kit.suite import Part, parts

PATIENT = """
import time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("cleared away")
"""

WHOLE = """
import pathlib, sys
from tests.kit import cluster, install, suite
patient, root = sys.argv.pop(), sys.argv.pop()
install.ROOT = pathlib.Path(root)
suite.LOGS = install.ROOT / "build"
suite.lint = lambda: suite.Part("lint", ["true"])
cluster.up = install.up = lambda: None
cluster.down = lambda with_engine: print("taken down", flush=True)
suite.tests = lambda name, *_, **__: suite.Part(name, [sys.executable, "-c", patient])
sys.exit(suite.main())
"""


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "LOGS", tmp_path / "build")
    suite.LOGS.mkdir()
    return suite.LOGS


def shell(script: str, name: str = "part", shown: bool = False) -> Part:
    return Part(name, ["sh", "-c", script], shown)


def ended(part: Part) -> None:
    deadline = time.monotonic() + 10
    while part.ended is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_shown_is_whole_lines_with_the_name_before_them(capfd: pytest.CaptureFixture[str]) -> None:
    with parts() as begun:
        begun.append(
            shell("printf 'one\\ntw'; sleep 0.2; printf 'o\\nthree'; echo wrong >&2; exit 3", shown=True)
        )
        ended(begun[0])
    said = [line for line in capfd.readouterr().err.splitlines() if "|" in line]
    assert said == ["part    | one", "part    | two", "part    | threewrong"]
    assert begun[0].outcome.startswith("part ended with 3 after ")
    assert begun[0].closing_lines() == "one\ntwo\nthreewrong"


@pytest.mark.parametrize("code", [0, 1])
def test_of_what_is_not_shown_all_is_shown_when_it_has_failed(
    code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with parts() as begun:
        begun.append(shell(f"seq 100; exit {code}"))
        ended(begun[0])
    said = [line for line in capfd.readouterr().err.splitlines() if "|" in line]
    assert len(said) == 100 * code


def test_what_still_runs_is_interrupted_and_waited_for(logs: Path) -> None:
    with pytest.raises(KeyError), parts() as begun:
        begun.append(Part("part", [sys.executable, "-c", PATIENT]))
        deadline = time.monotonic() + 10
        while "begun" not in begun[0].log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise KeyError
    assert begun[0].process.returncode == 0
    assert begun[0].log.read_text() == "begun\ncleared away\n"


@pytest.mark.parametrize("failing", ["lint", "unit", "image", "foreign", "e2e", "cluster", ""])
def test_one_part_that_fails_fails_all(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, *_: object, **__: object) -> Part:
        return shell(f"exit {4 if name == failing else 0}", name)

    monkeypatch.setattr(suite, "lint", lambda: part("lint"))
    monkeypatch.setattr(suite, "tests", part)
    monkeypatch.setattr(cluster, "up", lambda: None)
    monkeypatch.setattr(install, "up", lambda: None)
    monkeypatch.setenv(install.INSTALLED, "as it will be, and not when this has ended")
    assert suite.run() == (4 if failing else 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_told_to_end_all_of_it_ends_and_the_cluster_goes(number: signal.Signals, tmp_path: Path) -> None:
    root = tmp_path / "whole"
    root.mkdir()
    words = ["env", "--default-signal=INT", sys.executable, "-c", WHOLE, str(root), PATIENT]
    logs = [root / "build" / f"{name}.log" for name in ("unit", "image", "foreign", "e2e", "cluster")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as whole:
        deadline = time.monotonic() + 20
        while not all(log.exists() and log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        whole.send_signal(number)
        said, complaint = whole.communicate(timeout=20)
    assert (whole.returncode, said) == (128 + number, "taken down\n"), complaint
    assert [log.read_text() for log in logs] == ["begun\ncleared away\n"] * len(logs)
    assert "told to end" in complaint
