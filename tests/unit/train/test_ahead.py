import errno
import os
import threading
import time
from collections.abc import Callable

import pytest

from spot_training.train import ahead
from spot_training.train.ahead import ReadAhead
from spot_training.train.checksum import BLOCK

_BLOCKS = 200
_LEAD = 64


class Disk:
    """Stands for the system's calls: says what is read, and keeps it in a page cache that may keep nothing."""

    RWF_NOWAIT = 8
    devnull = os.devnull

    def __init__(self, *, keeps: bool = True, refusal: int | None = None) -> None:
        self.reached = 0
        self.reads = 0
        self._keeps, self._refusal = keeps, refusal

    def preadv(self, descriptor: int, buffers: list[bytearray], place: int, flags: int) -> int:
        assert flags == self.RWF_NOWAIT
        if self._refusal == errno.EOPNOTSUPP:
            raise OSError(self._refusal, os.strerror(self._refusal))
        if not self._keeps or place >= self.reached:
            raise BlockingIOError
        return 1

    def sendfile(self, target: int, descriptor: int, place: int, count: int) -> int:
        self.reads += 1
        if self._refusal == errno.EIO:
            raise OSError(self._refusal, os.strerror(self._refusal))
        assert place <= self.reached, "it leaves nothing out"
        self.reached = max(self.reached, place + count)
        return count


def _start(disk: Disk, monkeypatch: pytest.MonkeyPatch, blocks: int = _BLOCKS) -> ReadAhead:
    monkeypatch.setattr(ahead, "os", disk)
    return ReadAhead(0, blocks * BLOCK)


def _wait_until(condition: Callable[[], bool], disk: Disk) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"it has read {disk.reached / BLOCK} blocks"
        time.sleep(0.001)


def _is_running() -> bool:
    return any(thread.name == "spot-training-ahead" for thread in threading.enumerate())


def test_it_stays_ahead_and_not_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    reading = _start(disk, monkeypatch)
    for used in range(_BLOCKS):
        _wait_until(lambda used=used: disk.reached >= min(_BLOCKS, used + _LEAD) * BLOCK, disk)
        assert disk.reached <= (used + _LEAD + 1) * BLOCK
        reading.used()
    _wait_until(lambda: not _is_running(), disk)
    reading.close()
    assert disk.reached == _BLOCKS * BLOCK


def test_it_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    reading = _start(disk, monkeypatch)
    _wait_until(lambda: disk.reached == _LEAD * BLOCK, disk)
    reading.close()
    assert not _is_running()
    assert disk.reached == _LEAD * BLOCK


@pytest.mark.parametrize(
    ("disk", "reads"),
    [
        pytest.param(Disk(keeps=False), 1, id="the file system keeps nothing"),
        pytest.param(Disk(refusal=errno.EOPNOTSUPP), 1, id="the file system cannot tell"),
        pytest.param(Disk(refusal=errno.EIO), 1, id="the disk is broken"),
    ],
)
def test_it_ends_where_it_is_of_no_use(disk: Disk, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = _start(disk, monkeypatch)
    _wait_until(lambda: not _is_running(), disk)
    reading.used()
    reading.close()
    assert disk.reads == reads


def test_a_small_file_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    reading = _start(disk, monkeypatch, blocks=4)
    assert not _is_running()
    reading.used()
    reading.close()
    assert disk.reads == 0
