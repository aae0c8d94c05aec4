"""Invariant: a checkpoint that is loaded is whole, and what is not is passed over, reported and kept."""

import contextlib
import errno
import functools
import gzip
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot_training.train import CheckpointError, Training, UnsavableStateError, VolumeFullError, files, state
from spot_training.train.manifest import Entry, Manifest
from spot_training.train.opened import open_share
from spot_training.train.ranks import Alone
from tests.unit.train.programs import Surroundings, Weights, fence, save_steps


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _swap_with_the_one_before(path: Path) -> None:
    shutil.copy(path.parent.with_name("step-000000000100") / path.name, path)


@pytest.mark.parametrize("file", ["state.json", "rank-00000.json", "manifest.json"])
@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, _swap_with_the_one_before, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_reported_and_kept(
    surroundings: Surroundings, damage: Callable[[Path], None], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100, 150)
    training = surroundings.open(2, second)  # from here on, 150 is accepted
    damage(surroundings.path(1, 150) / file)
    assert training.load() == 100
    assert second.drawn == [100.0]
    [passed_over] = training.passed_over
    assert passed_over.checkpoint == f"{fence(1)}/step-000000000150"
    assert surroundings.report()["passedOver"][0]["reason"] == passed_over.reason
    assert f"passed over {passed_over.checkpoint}: {passed_over.reason}" in caplog.text
    save_steps(training, second, 170, 180, 190)
    kept = surroundings.directory / fence(1) / "damaged-step-000000000150"
    assert kept.is_dir(), sorted(str(path) for path in surroundings.directory.rglob("*"))


def test_where_none_is_whole_nothing_begins_anew_unasked(surroundings: Surroundings) -> None:
    weights = Weights()
    save_steps(surroundings.open(1, weights), weights, 100, 150)
    for step in (100, 150):
        _flip_a_bit(surroundings.path(1, step) / "state.json")
    for attempt in (2, 3):
        with pytest.raises(CheckpointError, match=r"none is whole.*empty the checkpoint directory"):
            surroundings.open(attempt, Weights()).load()
    assert surroundings.steps(1) == [100, 150]


def test_an_attempts_list_in_the_place_of_anothers_is_not_believed(surroundings: Surroundings) -> None:
    first, second = Weights(), Weights()
    save_steps(surroundings.open(1, first), first, 100)
    save_steps(surroundings.open(2, second), second, 150)
    lists = [surroundings.directory / fence(attempt) / "accepted.json" for attempt in (1, 2)]
    shutil.copy(*lists)
    _flip_a_bit(surroundings.path(2, 150) / "state.json")
    with pytest.raises(CheckpointError, match=r"holds another record: accepted\.json of attempt .*-000001"):
        surroundings.open(3, Weights()).load()


def test_a_damaged_one_of_the_same_fence_is_put_aside_when_its_step_comes_again(
    surroundings: Surroundings,
) -> None:
    weights = Weights()
    save_steps(surroundings.open(1, weights), weights, 100, 150)
    _flip_a_bit(surroundings.path(1, 150) / "state.json")
    training = surroundings.open(1, weights)
    assert training.load() == 100
    save_steps(training, weights, 150)
    assert surroundings.steps(1) == [100, 150]
    assert (surroundings.directory / fence(1) / "damaged-step-000000000150").is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_costs_a_save_never_the_training(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights)
    save_steps(training, weights, 100)

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        training.step = 150
        save = training.save()
        with pytest.raises(CheckpointError, match=os.strerror(code)) as raised:
            save.wait()
    full = code in (errno.ENOSPC, errno.EDQUOT)
    assert isinstance(raised.value, VolumeFullError) is full
    assert surroundings.steps(1) == [100]
    assert not surroundings.path(1, 150).exists(), "a full disk has its room again"
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Running", 150, 100)
    assert os.strerror(code) in report["message"]
    assert report.get("saveTrouble") == ("VolumeFull" if full else None)
    training.step = 160
    training.save().wait()
    assert surroundings.steps(1) == [100, 160]
    assert not {"message", "saveTrouble"} & surroundings.report().keys()


@pytest.mark.parametrize("where", ["begin", "complete"])
def test_a_program_that_a_full_volume_ends_says_so(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    training = surroundings.open(1, Weights())
    training.load()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(VolumeFullError, match="No space left on device") as raised:
        training.complete() if where == "complete" else surroundings.open(2, Weights())
    sys.excepthook(raised.type, raised.value, raised.tb)
    report = surroundings.report()
    assert report["reason"] == "VolumeFull"
    assert report["message"].startswith("VolumeFullError: c")


def test_a_program_that_fails_by_itself_after_a_full_volume_has_failed(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    training = surroundings.open(1, Weights())
    training.load()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        training.save()
    sys.excepthook(ValueError, ValueError("the loss is not a number"), None)
    report = surroundings.report()
    assert (report["reason"], report["saveTrouble"]) == ("Failed", "VolumeFull")
    # Another disk than that of the checkpoints is the program's own affair.
    sys.excepthook(OSError, OSError(errno.ENOSPC, "No space left on device"), None)
    assert surroundings.report()["reason"] == "Failed"


def test_a_directory_that_cannot_be_made_is_a_clear_error(surroundings: Surroundings) -> None:
    surroundings.directory.write_text("a file")
    with pytest.raises(
        CheckpointError, match=f"cannot use the checkpoint directory {surroundings.directory}"
    ):
        surroundings.open(1, Weights())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), r"state\['x'\]\['a'\]\[0\] is a builtins\.object"),
        (b"bytes", r"is a builtins\.bytes"),
        ({1: 2}, "has the key 1"),
        ({"spot.training/tuple": [1]}, "stands for a tuple: name it otherwise"),
        (threading.Lock(), "lock"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_refused_at_the_start(
    surroundings: Surroundings, value: object, words: str
) -> None:
    surroundings.attempt(1)
    training = Training({"x": (lambda: {"a": [value]}, lambda _: None)})
    with pytest.raises(UnsavableStateError, match=words):
        training.load()


def test_what_is_used_of_a_compressed_file_is_what_was_verified(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, loaded = Weights(), Weights()
    save_steps(surroundings.open(1, weights, compress="gzip"), weights, 100)
    path, read = surroundings.path(1, 100) / "state.json.gz", os.preadv
    size = path.stat().st_size

    def alter_when_read(descriptor: int, buffers: Any, offset: int) -> int:
        count = read(descriptor, buffers, offset)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path and offset + count == size:
            path.write_bytes(gzip.compress(b'{"weights": {"drawn": [6.66]}}').ljust(size, b" "))
        return count

    monkeypatch.setattr(os, "preadv", alter_when_read)
    assert surroundings.open(2, loaded).load() == 100
    assert loaded.drawn == [100.0]


def test_a_file_that_was_verified_for_all_is_verified_again_by_who_uses_it(tmp_path: Path) -> None:
    contents = {name: {"of": name} for name in ("state", "rank-00000", "shard-00000", "shard-00001")}
    entry = Entry(tmp_path, "fence", 7, "")
    entry.path.mkdir(parents=True)
    written = {
        f"{name}.json": files.write_durably(
            entry.path / f"{name}.json", functools.partial(state.write, content)
        )
        for name, content in contents.items()
    }
    manifest = Manifest("fence", 1, 7, 0.0, 2, {}, written)
    with contextlib.ExitStack() as stack:
        opened, flaw = open_share(entry, manifest, Alone(), stack)
        assert flaw is None
        path = entry.path / "shard-00001.json"
        path.write_text(path.read_text().replace("shard-00001", "shard-66666"))
        assert opened.shard(0) == contents["shard-00000"]
        with pytest.raises(files.DamagedError, match=r"shard-00001\.json has another content"):
            opened.shard(1)


def test_tuples_come_back_as_tuples_also_without_torch(surroundings: Surroundings) -> None:
    chance, again, took = random.Random(7), random.Random(), list[Any]()
    value = {"pair": (1, [2.5, (None,)]), "list": [()]}
    surroundings.attempt(1)
    parts = {"chance": (chance.getstate, chance.setstate), "value": (lambda: value, took.append)}
    training = Training(parts)
    training.extras["shape"] = (3, 4)
    training.load()
    training.save().wait()
    surroundings.attempt(2)
    training = Training({"chance": (again.getstate, again.setstate), "value": (dict, took.append)})
    training.load()
    assert took == [value]
    assert again.random() == chance.random()
    assert training.extras == {"shape": [3, 4]}, "facts are JSON's, in the termination message, too"
