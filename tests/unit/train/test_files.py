import errno
import functools
import os
import random
from pathlib import Path

import pytest

from spot_training.train import checked, files
from spot_training.train.checked import CheckedFile
from spot_training.train.files import DamagedError


def _write(data: bytes, sink: files.Sink) -> None:
    sink.write(data)


def _write_content(sink: files.Sink) -> None:
    sink.write(b"content")


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(sink: files.Sink) -> None:
        sink.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_durably(path, fail)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"old"}


def test_a_disk_error_is_told_although_the_writer_turned_it_into_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    monkeypatch.setattr(files, "_beside", lambda path: tmp_path / "beside")

    def write_like_torch(sink: files.Sink) -> None:
        try:
            for _ in range(1000):
                sink.write(bytes(100_000))
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file") from None

    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r": original(full, "wb") if "x" in mode else original(self, mode)
    )
    with pytest.raises(OSError, match="No space left"):
        files.write_durably(tmp_path / "file", write_like_torch)


def test_the_flush_comes_before_the_rename_and_the_directory_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    order: list[tuple[str, bool]] = []
    original = os.fsync

    def note(descriptor: int) -> None:
        order.append((Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1], path.exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.write_durably(path, _write_content)
    assert order == [("tmp", False), (tmp_path.name.split(".")[-1], True)]


def test_of_several_creators_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "file"
    made = [files.create_exclusively(path, content) for content in (b"first", b"second")]
    assert made == [True, False]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"first"


def test_one_wins_also_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    assert files.create_exclusively(path, b"first")
    assert not files.create_exclusively(path, b"second")
    assert path.read_bytes() == b"first"


def test_every_flipped_bit_of_a_record_that_changes_it_is_found() -> None:
    record = {"step": 150, "time": 1.5, "extras": {"loss": None, "name": "a"}}
    data = files.seal(record)
    assert files.unseal(data, "x") == record
    harmless = 0
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            assert files.unseal(bytes(flipped), "x") == record, f"bit {position} changed the record unnoticed"
            harmless += 1
        except DamagedError:
            pass
    assert harmless < 100, "only white space may change"


def test_verify_tells_size_and_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = files.write_durably(path, _write_content)
    with path.open("rb") as file:
        checked.verify(file, written)
        assert file.read() == b"content"
    path.write_bytes(b"conten")
    with path.open("rb") as file, pytest.raises(DamagedError, match="has 6 bytes, 7 were written"):
        checked.verify(file, written)
    path.write_bytes(b"Content")
    with path.open("rb") as file, pytest.raises(DamagedError, match="another content"):
        checked.verify(file, written)


def test_the_checksum_is_of_the_content_in_whatever_pieces_it_was_written(tmp_path: Path) -> None:
    chance = random.Random(20261121)
    data = chance.randbytes((5 << 20) + 17)

    def in_pieces(sink: files.Sink) -> None:
        start = 0
        while start < len(data):
            end = start + chance.choice([1, 100, 70_000, 1_500_000])
            sink.write(data[start:end])
            start = end

    whole = files.write_durably(tmp_path / "whole", functools.partial(_write, data))
    assert files.write_durably(tmp_path / "pieces", in_pieces) == whole
    assert (tmp_path / "pieces").read_bytes() == data
    with (tmp_path / "pieces").open("rb") as file:
        checked.verify(file, whole)
        assert file.read() == data, "it is at its start after"


def test_a_change_in_any_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state"
    data = random.Random(20261121).randbytes((5 << 20) + 17)
    written = files.write_durably(path, functools.partial(_write, data))
    block = 1 << 20
    changed = [data[block : 2 * block] + data[:block] + data[2 * block :]]
    for place in (0, block - 1, block, 3 * block + 5, len(data) - 1):
        changed.append(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    for content in changed:
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(DamagedError, match="another content"):
            checked.verify(file, written)
    path.write_bytes(data[:-1])
    with path.open("rb") as file, pytest.raises(DamagedError, match="bytes"):
        checked.verify(file, written)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_a_checked_file_gives_is_what_is_in_it_and_counts_only_if_all_of_it_is_whole(
    tmp_path: Path, ahead: bool
) -> None:
    chance = random.Random(20261121)
    path = tmp_path / "state"
    data = chance.randbytes((20 << 20) + 17)
    written = files.write_durably(path, functools.partial(_write, data))

    def read_here_and_there(checked: CheckedFile) -> None:
        for _ in range(40):
            start, size = chance.randrange(len(data)), chance.choice([1, 5000, 1 << 20, 6 << 20])
            if chance.random() < 0.5:
                start = min(checked.tell() + chance.randrange(100), len(data))  # as torch goes on
            checked.seek(start)
            assert checked.read(size) == data[start : start + size]
        assert checked.seek(0, os.SEEK_END) == len(data)
        assert checked.read(1) == b""

    with path.open("rb") as file, CheckedFile(file, written, ahead=ahead) as checked:
        read_here_and_there(checked)
        checked.finish()
    with path.open("r+b") as target:
        target.seek(8 << 20)
        target.write(b"another")
    with path.open("rb") as file, CheckedFile(file, written, ahead=ahead) as checked:
        assert checked.read(5000) == data[:5000]
        with pytest.raises(DamagedError, match="another content"):
            checked.finish()
    with path.open("rb") as file, CheckedFile(file, written, ahead=ahead) as checked:
        checked.read(3 << 20)
        with path.open("r+b") as target:
            target.seek(1 << 20)
            target.write(b"something else")
        checked.seek(0)
        with pytest.raises(DamagedError, match="changes while it is read"):
            checked.read(3 << 20)
