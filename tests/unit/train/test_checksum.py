import importlib
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from isal import isal_zlib

from spot_training.train import checked, checksum, files

_CHANCE = random.Random(20261121)


@pytest.fixture
def without_isal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in an image that does not have the package."""
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    importlib.reload(checksum)
    yield
    monkeypatch.undo()
    importlib.reload(checksum)


def test_the_fast_sum_is_used_where_it_is_installed() -> None:
    assert checksum.crc32 is isal_zlib.crc32


def test_without_it_zlibs_is_used(without_isal: None) -> None:
    assert checksum.crc32 is zlib.crc32


@pytest.mark.parametrize("size", [0, 1, 15, 16, 255, 4097, 70_001, checksum.BLOCK - 1, checksum.BLOCK])
def test_both_sums_are_the_same(size: int) -> None:
    for _ in range(5):
        skipped = _CHANCE.randrange(64)  # where in memory it begins must not matter
        data = memoryview(_CHANCE.randbytes(size + skipped))[skipped:]
        before = _CHANCE.getrandbits(32)
        assert isal_zlib.crc32(data) == zlib.crc32(data), f"{size} bytes from {skipped}"
        assert isal_zlib.crc32(data, before) == zlib.crc32(data, before), f"{size} bytes after {before}"


def test_what_was_written_with_one_is_whole_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _CHANCE.randbytes(2 * checksum.BLOCK + 17)

    def write(sink: files.Sink) -> None:
        sink.write(data[:1000])
        sink.write(data[1000:])

    ways = {"isal": isal_zlib.crc32, "zlib": zlib.crc32}
    for writer, reader in (("isal", "zlib"), ("zlib", "isal")):
        monkeypatch.setattr(checksum, "crc32", ways[writer])
        written = files.write_durably(tmp_path / writer, write)
        monkeypatch.setattr(checksum, "crc32", ways[reader])
        with (tmp_path / writer).open("rb") as file:
            checked.verify(file, written)
        damaged = bytearray(data)
        damaged[checksum.BLOCK + 5] ^= 1
        (tmp_path / writer).write_bytes(damaged)
        with (
            (tmp_path / writer).open("rb") as file,
            pytest.raises(files.DamagedError, match="another content"),
        ):
            checked.verify(file, written)
