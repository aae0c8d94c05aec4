"""Reading ahead: the disk goes on while what it has brought is copied, checked and unpickled.

The kernel reads ahead too, by 128 KiB unless the machine's owner has set more, only while somebody reads, and anew
after each jump; torch jumps, for it may store the tensors 0, 1, 10, 11 … 2, 20 … and loads 0, 1, 2. Asking for more
with `posix_fadvise` brings it in small pages, which took longer than reading does (Linux 6.18). So a thread sends the
file to /dev/null, which copies nothing, and the page cache keeps it for those who want it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

_LEAD: Final = 256 << 20
"""Bytes that it may be ahead of what has been read: more would only take memory."""
_PIECE: Final = 16 << 20
"""Bytes that are sent at once. Between two pieces it may have to wait until another thread lets Python go."""
_FIRST: Final = 1 << 20
"""Bytes after which it looks whether they are kept."""
_WORTH_IT: Final = 16 << 20
"""Bytes of a file that is worth a thread."""


class ReadAhead:
    """Brings an open file of `size` bytes into the page cache, from its start on.

    It only makes reading faster, and ends without a word where reading fails, and where the file system keeps nothing
    or cannot tell (most network file systems, which read ahead by their own rules).
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._changed = threading.Condition()
        self._used = 0
        self._ended = False
        self._thread: threading.Thread | None = None
        if size >= _WORTH_IT and hasattr(os, "RWF_NOWAIT"):
            self._thread = threading.Thread(target=self._run, name="spot-training-ahead")
            self._thread.start()

    def used(self, size: int) -> None:
        """So many bytes more have been read by those who want them, wherever they are."""
        with self._changed:
            self._used += size
            self._changed.notify()

    def close(self) -> None:
        """Let it end; then the file may be closed."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        # Opened once more, for the kernel follows what is read in turn by what was opened.
        own = Path(f"/proc/self/fd/{self._descriptor}")
        with contextlib.suppress(OSError), own.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            place = 0
            while place < self._size and self._may_read(place):
                piece = _PIECE if place else _FIRST
                sent = os.sendfile(nowhere.fileno(), file.fileno(), place, piece)
                if sent == 0 or not _is_cached(file.fileno(), place):
                    return  # all of it would be read twice
                place += sent

    def _may_read(self, place: int) -> bool:
        """Wait until it is not too far ahead. False: it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or place < self._used + _LEAD)
            return not self._ended


def _is_cached(descriptor: int, place: int) -> bool:
    """Whether a byte can be had without the disk. Raises OSError where the file system cannot tell."""
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
