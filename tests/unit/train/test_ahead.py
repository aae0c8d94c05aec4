import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from spot_training.train import ahead
from spot_training.train.ahead import ReadAhead
from tests.bench.checkpoint import plain

_MIB = 1 << 20
_SIZE = 1000 * _MIB
_LEAD, _PIECE = 256 * _MIB, 8 * _MIB


class Disk:
    """Stands for the system's calls: says what is read, and has a page cache, which may keep nothing."""

    RWF_NOWAIT = os.RWF_NOWAIT
    devnull = os.devnull

    def __init__(self, *, keeps: bool = True, refusal: int | None = None, of: str = "") -> None:
        self.reached = 0
        self.places: list[int] = []
        self.may_send = threading.Event()
        self.may_send.set()
        self._keeps, self._refusal, self._of = keeps, refusal, of

    def preadv(self, descriptor: int, buffers: list[bytearray], place: int, flags: int) -> int:
        assert flags == self.RWF_NOWAIT
        self._refuse("preadv")
        if not self._keeps:
            raise BlockingIOError
        return 1

    def sendfile(self, target: int, descriptor: int, place: int, count: int) -> int:
        self.may_send.wait()
        self.places.append(place)
        self._refuse("sendfile")
        sent = min(count, 5 * _MIB, _SIZE - place)  # it may be less than was asked for
        self.reached += sent
        return sent

    def has_reached(self, place: int) -> bool:
        return self.reached >= place

    def _refuse(self, call: str) -> None:
        if self._refusal and call == self._of:
            raise OSError(self._refusal, os.strerror(self._refusal))


@contextmanager
def _reading(disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int = _SIZE) -> Iterator[ReadAhead]:
    monkeypatch.setattr(ahead, "os", disk)
    with Path(__file__).open("rb") as file:
        reading = ReadAhead(file.fileno(), size)
        try:
            yield reading
        finally:
            disk.may_send.set()
            reading.close()
    assert not _is_running()


def _wait_until(condition: Callable[[], bool], disk: Disk) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"it has read {disk.reached / _MIB} MiB"
        time.sleep(0.001)


def _is_running() -> bool:
    return any(thread.name == "spot-training-ahead" for thread in threading.enumerate())


def test_it_stays_ahead_and_not_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    with _reading(disk, monkeypatch) as reading:
        reading.start()
        for used in range(0, _SIZE, 10 * _MIB):
            _wait_until(partial(disk.has_reached, min(_SIZE, used + _LEAD)), disk)
            assert disk.reached < used + _LEAD + _PIECE
            reading.used(10 * _MIB)
        _wait_until(lambda: not _is_running(), disk)
    assert disk.reached == _SIZE
    assert disk.places == sorted(set(disk.places)), "each once, from the start on"


def test_it_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    with _reading(disk, monkeypatch) as reading:
        reading.start()
        _wait_until(lambda: disk.reached >= _LEAD, disk)
    assert disk.reached < _LEAD + _PIECE


@pytest.mark.parametrize(
    "disk",
    [
        pytest.param(Disk(keeps=False), id="the file system keeps nothing"),
        pytest.param(Disk(refusal=errno.EOPNOTSUPP, of="preadv"), id="the file system cannot tell"),
        pytest.param(Disk(refusal=errno.EINVAL, of="sendfile"), id="the file system cannot send"),
        pytest.param(Disk(refusal=errno.EIO, of="sendfile"), id="the disk is broken"),
    ],
)
def test_it_ends_where_it_is_of_no_use(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with _reading(disk, monkeypatch) as reading:
        reading.start()
        reading.wait(7)
        _wait_until(lambda: not _is_running(), disk)
    assert len(disk.places) == 1
    assert disk.reached <= _MIB


def test_a_small_file_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    with _reading(disk, monkeypatch, size=4 * _MIB) as reading:
        reading.start()
        assert not _is_running()
        reading.wait(0)
        reading.used(4 * _MIB)
    assert not disk.places


def test_what_is_wanted_first_comes_first_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, size = Disk(), 40 * _MIB
    with _reading(disk, monkeypatch, size=size) as reading:
        reading.start([(30 * _MIB + 5, 32 * _MIB), (10 * _MIB, 12 * _MIB), (31 * _MIB, 33 * _MIB + 1)])
        _wait_until(lambda: not _is_running(), disk)
    assert [place // _MIB for place in disk.places] == [30, 31, 10, 32, 0, 5, 8, 12, 17, 20, 25, 28, 34, 39]
    assert disk.reached == size


def test_who_wants_a_block_waits_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    disk.may_send.clear()
    with _reading(disk, monkeypatch) as reading:
        reading.start()
        wanting = threading.Thread(target=reading.wait, args=(20,))
        wanting.start()
        assert wanting.is_alive()
        disk.may_send.set()
        wanting.join(timeout=30)
        assert not wanting.is_alive()
        assert disk.reached > 20 * _MIB


def test_nobody_waits_for_what_is_further_ahead_than_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    with _reading(disk, monkeypatch) as reading:
        reading.start()
        reading.wait(900)
        assert disk.reached < _LEAD + _PIECE
        reading.used(100 * _MIB)
        reading.wait(300)
        assert disk.reached >= 300 * _MIB


def test_a_real_file_comes_into_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(40 * _MIB))
    # Of a file system in memory nothing can be dropped, and what follows holds there from the start.
    with suppress(AssertionError):
        plain.drop_from_cache(tmp_path)
    with path.open("rb") as file:
        reading = ReadAhead(file.fileno(), 40 * _MIB)
        reading.start([(25 * _MIB, 40 * _MIB)])
        deadline = time.monotonic() + 30
        while _is_running():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        reading.close()
        for place in range(0, 40 * _MIB, _MIB):
            assert os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT) == 1
