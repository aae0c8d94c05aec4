"""Reading ahead: the disk goes on while what it has brought is copied, checked and unpickled.

The kernel reads ahead too, by 128 KiB unless the machine's owner has set more, only while somebody reads, and anew
after each jump; torch jumps, for it stores the tensors 0, 1, 10, 11 … 2, 20 … and loads 0, 1, 2. Asking for more
with `posix_fadvise` brings it in small pages, which took longer than reading does (Linux 6.18). So a thread sends the
file to /dev/null, which copies nothing, in the order in which it will be wanted, and the page cache keeps it for those
who want it; they wait for it, since a disk that two read from at once brings less.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spot_training.train.checksum import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAD: Final = 256 << 20
"""Bytes that it may be ahead of what has been read: more would only take memory."""
_PIECE: Final = 8
"""Blocks that are sent at once. Between two pieces it may have to wait until another thread lets Python go."""
_WORTH_IT: Final = 16 << 20
"""Bytes of a file that is worth a thread."""


class ReadAhead:
    """Brings an open file of `size` bytes into the page cache.

    It only makes reading faster, and ends without a word where reading fails, and where the file system keeps nothing
    or cannot tell (most network file systems, which read ahead by their own rules).
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._changed = threading.Condition()
        self._used = self._sent = 0
        self._brought: set[int] = set()
        self._over = True
        self._ended = False
        self._thread: threading.Thread | None = None

    def start(self, parts: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with what is wanted first, in that order: `parts` are (start, end) in bytes. The rest follows."""
        if self._size >= _WORTH_IT and hasattr(os, "RWF_NOWAIT") and self._thread is None:
            pieces = _pieces(parts, self._size)
            self._over = False
            self._thread = threading.Thread(target=self._run, args=(pieces,), name="spot-training-ahead")
            self._thread.start()

    def wait(self, block: int) -> None:
        """Return when that block has been brought, unless it will not be soon: two that read make a disk jump."""
        if not self._over and block not in self._brought:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._rests() or block in self._brought)

    def used(self, size: int) -> None:
        """So many bytes more have been read by those who want them, wherever they are."""
        with self._changed:
            self._used += size
            self._changed.notify_all()

    def close(self) -> None:
        """Let it end; then the file may be closed."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self, pieces: list[range]) -> None:
        # Opened once more, for the kernel follows what is read in turn by what was opened.
        own = Path(f"/proc/self/fd/{self._descriptor}")
        try:
            with contextlib.suppress(OSError), own.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
                for piece in pieces:
                    if not self._may_read() or not self._bring(file.fileno(), nowhere.fileno(), piece):
                        return
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _bring(self, descriptor: int, nowhere: int, blocks: range) -> bool:
        """Whether these blocks are in the page cache now. Raises OSError where the file system cannot tell."""
        place, end = blocks.start * BLOCK, min(blocks.stop * BLOCK, self._size)
        first = place
        while place < end:
            sent = os.sendfile(nowhere, descriptor, place, end - place)
            if sent == 0:
                return False
            place += sent
        if not _is_cached(descriptor, first):
            return False
        with self._changed:
            self._sent += end - first
            self._brought.update(range(blocks.start, -(-end // BLOCK)))
            self._changed.notify_all()
        return True

    def _may_read(self) -> bool:
        """Wait until it is not too far ahead. False: it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._rests())
            return not self._ended

    def _rests(self) -> bool:
        return self._sent >= self._used + _LEAD


def _pieces(parts: Iterable[tuple[int, int]], size: int) -> list[range]:
    """Each block of the file once, in the order in which it is wanted, so many at a time as may be sent at once."""
    made: list[range] = []
    planned = bytearray(-(-size // BLOCK))
    for start, end in (*parts, (0, size)):
        for block in range(max(0, start) // BLOCK, -(-min(end, size) // BLOCK)):
            if planned[block]:
                continue
            planned[block] = True
            # The first is one block only: where nothing is kept, it is read twice.
            if len(made) > 1 and made[-1].stop == block and len(made[-1]) < _PIECE:
                made[-1] = range(made[-1].start, block + 1)
            else:
                made.append(range(block, block + 1))
    return made


def _is_cached(descriptor: int, place: int) -> bool:
    """Whether a byte can be had without the disk. Raises OSError where the file system cannot tell."""
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
