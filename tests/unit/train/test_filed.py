"""Parts that write files by themselves: in a checkpoint under the same promises as all else."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from spot_training.train import CheckpointError, Files, Training, UnsavableStateError
from tests.unit.train.programs import Program, Surroundings, fence


class Forest:
    """A model with a format of its own: files, one in a directory below, and one that is empty."""

    def __init__(self, value: bytes = b"") -> None:
        self.value = value
        self.seen: list[str] = []

    def save(self, directory: Path) -> None:
        assert list(directory.iterdir()) == []
        (directory / "trees" / "oak").mkdir(parents=True)
        (directory / "trees" / "oak" / "model.bin").write_bytes(self.value)
        (directory / "empty").touch()

    def load(self, directory: Path) -> None:
        self.seen = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
        self.value = (directory / "trees" / "oak" / "model.bin").read_bytes()


def _open(surroundings: Surroundings, attempt: int, forest: Forest, **arguments: Any) -> Training:
    surroundings.attempt(attempt)
    return Training({"a/forest": Files(forest.save, forest.load)}, **arguments)


def _save(training: Training, forest: Forest, step: int, value: bytes) -> None:
    training.load()
    training.step, forest.value = step, value
    save = training.save()
    forest.value = b"what comes after"
    save.wait()


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_files_come_back_as_they_were_and_nothing_is_left_of_the_way(
    surroundings: Surroundings, scratch: Path, background: bool, compress: str | None
) -> None:
    forest, value = Forest(), os.urandom(3_000_000)
    _save(_open(surroundings, 1, forest, background=background, compress=compress), forest, 10, value)
    assert list(scratch.iterdir()) == []
    loaded = Forest()
    training = _open(surroundings, 2, loaded)
    assert training.load() == 10
    assert loaded.value == value
    assert loaded.seen == ["empty", "trees", "trees/oak", "trees/oak/model.bin"]
    assert list(scratch.iterdir()) == []


def test_what_each_rank_has_of_its_own_may_be_files_too(surroundings: Surroundings) -> None:
    forest, common = Forest(), {"a": 1}
    surroundings.attempt(1)
    parts = {"common": (lambda: common, lambda _: None)}
    training = Training(parts, per_rank={"forest": Files(forest.save, forest.load)})
    _save(training, forest, 10, b"mine")
    assert (surroundings.path(1, 10) / "files-00000.tar").exists()
    loaded = Forest()
    surroundings.attempt(2)
    training = Training(parts, per_rank={"forest": Files(loaded.save, loaded.load)})
    assert training.load() == 10
    assert loaded.value == b"mine"


@pytest.mark.parametrize("place", [100, 1_000_000, 1_048_576 + 700])
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_of_damaged_files_the_program_sees_nothing(
    surroundings: Surroundings, scratch: Path, place: int, compress: str | None
) -> None:
    forest = Forest()
    training = _open(surroundings, 1, forest, compress=compress)
    for step in (40, 50):
        _save(training, forest, step, bytes([step]) + os.urandom(2_000_000))
    path = surroundings.path(1, 50) / f"files.tar{'.gz' if compress else ''}"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    loaded = Forest()
    training = _open(surroundings, 2, loaded)
    assert training.load() == 40
    assert loaded.value[0] == 40
    assert [item.checkpoint for item in training.passed_over] == [f"{fence(1)}/step-000000000050"]
    assert list(scratch.iterdir()) == []


KILLED = """
import os, signal
from spot_training.train import Files, Training
from tests.unit.train.test_filed import Forest

forest = Forest(b"x" * 100_000)
training = Training({"a/forest": Files(forest.save, forest.load)})
training.load()
training.step = 10
training.save().wait()
flush, calls = os.fsync, []

def die(descriptor):
    calls.append(descriptor)
    if len(calls) == GIVEN:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)

os.fsync = die
forest.value = b"y" * 100_000
training.step = 20
training.save().wait()
"""


@pytest.mark.parametrize("given", [1, 3, 5, 6, 7, 8])
def test_killed_while_saving_files_it_goes_on_from_those_before(
    surroundings: Surroundings, given: int
) -> None:
    program = Program("-c", KILLED.replace("GIVEN", str(given)), env=surroundings.environment(1))
    code, _, err = program.end()
    assert code == -9, err
    loaded = Forest()
    step = _open(surroundings, 2, loaded).load()
    assert (step, set(loaded.value)) in [(10, set(b"x")), (20, set(b"y"))]


def test_what_is_no_file_is_refused_by_name(surroundings: Surroundings, scratch: Path) -> None:
    surroundings.attempt(1)
    link = Files(lambda directory: (directory / "link").symlink_to("/etc/passwd"), lambda _: None)
    training = Training({"model": link})
    training.load()
    with pytest.raises(UnsavableStateError, match=r"state\['model'\] has written link, which is neither"):
        training.save()
    assert list(scratch.iterdir()) == []


def test_without_room_for_its_files_a_save_fails_and_training_goes_on(
    surroundings: Surroundings, scratch: Path
) -> None:
    forest = Forest()
    training = _open(surroundings, 1, forest)
    _save(training, forest, 10, b"ten")
    shutil.rmtree(scratch)
    training.step = 20
    training.save()
    report = surroundings.report()
    assert (report["step"], report["checkpointStep"]) == (20, 10)
    assert "No such file or directory" in report["message"]
    with pytest.raises(CheckpointError, match=r"cannot unpack a checkpoint's files: .*TMPDIR"):
        _open(surroundings, 2, Forest()).load()
    scratch.mkdir()
    assert _open(surroundings, 3, loaded := Forest()).load() == 10, "and nothing was put aside for it"
    assert loaded.value == b"ten"


def test_a_part_that_has_written_no_files_is_named(surroundings: Surroundings) -> None:
    forest = Forest()
    _save(_open(surroundings, 1, forest), forest, 10, b"ten")
    surroundings.attempt(2)
    training = Training({"bush": Files(forest.save, forest.load)})
    with pytest.raises(KeyError, match="no files of bush"):
        training.load()


def test_an_error_of_the_parts_own_disk_is_not_the_volumes(surroundings: Surroundings, scratch: Path) -> None:
    forest = Forest()
    training = _open(surroundings, 1, forest)
    _save(training, forest, 10, b"ten")

    def overflow(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    surroundings.monkeypatch.setattr(training._store, "_files", {"a/forest": Files(overflow, forest.load)})
    training.step = 20
    training.save()
    report = surroundings.report()
    assert "No space left on device" in report["message"]
    assert "saveTrouble" not in report
    assert list(scratch.iterdir()) == []
