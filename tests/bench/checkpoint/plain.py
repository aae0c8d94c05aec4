"""Plain sequential file input and output, which a checkpoint is compared with, and files out of the page cache."""

import os
import random
import time
from pathlib import Path
from typing import Final

_CHUNK: Final = 8 << 20
_TRIES: Final = 20


def write(path: Path, size: int) -> float:
    """Seconds that writing `size` bytes into a new file takes, with fsync."""
    chunk = memoryview(random.Random(1).randbytes(_CHUNK))
    began = time.monotonic()
    with path.open("xb", buffering=0) as file:
        for start in range(0, size, _CHUNK):
            left = chunk[: min(_CHUNK, size - start)]
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())
    return time.monotonic() - began


def read(path: Path) -> float:
    """Seconds that reading a file through takes: by 8 MiB from its start on, always into the same memory."""
    chunk = bytearray(_CHUNK)
    began = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.readinto(chunk):
            pass
    return time.monotonic() - began


def drop_from_cache(directory: Path) -> None:
    """Take all files below `directory` out of the page cache. Raises AssertionError where that has no effect.

    By posix_fadvise, which needs no privilege, and is for these files what /proc/sys/vm/drop_caches is for all.
    """
    for path in directory.rglob("*"):
        if not path.is_file():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is dirty stays
            for _ in range(_TRIES):  # what another processor is just done with may stay once
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                if not _is_cached(descriptor):
                    break
                time.sleep(0.01)
            else:
                raise AssertionError(f"{path} is still in the page cache")
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what was read ahead by asking
        finally:
            os.close(descriptor)


def _is_cached(descriptor: int) -> bool:
    """Whether the middle of a file can be read without a disk."""
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], os.fstat(descriptor).st_size // 2, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
