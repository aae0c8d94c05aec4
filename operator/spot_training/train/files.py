"""Files that are whole or not there, also when the process or the machine dies at any instant.

A file is written under another name in the same directory, flushed to the disk, and renamed: POSIX makes the
rename atomic. The directory is then flushed as well, since a name is data of its directory and may be lost
without it. What is read back (`checked`) is compared with a checksum (`checksum`), because a disk or a network file
system may still lose or alter what it has acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from spot_training.train import checksum
from spot_training.train.checksum import BLOCK
from spot_training.train.helpers import Helpers
from spot_training.train.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ASIDE: Final = 1 << 20
"""Bytes in one piece that are worth a thread of their own for their checksum."""
_FLUSHED_AT_ONCE: Final = 16 << 20
_CHECKSUM: Final = "checksum"
_NOT_OFFERED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""How file systems say that they do not know an operation (FUSE mounts of object stores know few)."""
_NO_LINKS: Final = _NOT_OFFERED | {errno.EPERM, errno.EMLINK}


class DamagedError(Exception):
    """A file is not what was written: torn, truncated, altered, swapped with another, or gone."""


class Sink(Protocol):
    """What a writer of content sees: enough for `json` and for `torch.save`."""

    def write(self, data: Any, /) -> int:
        """Take bytes and return how many."""

    def flush(self) -> None:
        """Do nothing that matters: the file is flushed when it is whole."""


@dataclass(frozen=True)
class Written:
    """What a whole file must be: its length in bytes and its checksum, in hex."""

    size: int
    checksum: str


class _Checking:
    """Passes bytes on to a file and checks them meanwhile, so that nothing is read back for that.

    The disk begins while the rest is still on its way: otherwise it would have everything to do at the end.
    """

    def __init__(self, file: BinaryIO, helpers: Helpers) -> None:
        self._file = file
        self._helpers = helpers
        self._size = self._flushed = 0
        self._checksums: list[int] = []
        self.refusal: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _ASIDE:
            self._pass_on(view)
            self._check(view)
        else:
            # Both at once; both are over when this returns, for the bytes are the caller's.
            self._helpers.share(lambda number: self._check(view) if number else self._pass_on(view), 2)
        self._begin_to_flush()
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def written(self) -> Written:
        return Written(self._size, checksum.combined(self._checksums))

    def _pass_on(self, view: memoryview) -> None:
        try:
            self._file.write(view)
        except OSError as error:
            self.refusal = error
            raise

    def _check(self, view: memoryview) -> None:
        start = 0
        while start < len(view):
            if self._size % BLOCK == 0:
                self._checksums.append(0)
            end = min(len(view), start + BLOCK - self._size % BLOCK)
            self._checksums[-1] = checksum.crc32(view[start:end], self._checksums[-1])
            self._size += end - start
            start = end

    def _begin_to_flush(self) -> None:
        waiting = self._size - self._flushed
        if waiting >= _FLUSHED_AT_ONCE:
            with contextlib.suppress(OSError, AttributeError):  # not everywhere; fsync does it all the same
                os.posix_fadvise(self._file.fileno(), self._flushed, waiting, os.POSIX_FADV_DONTNEED)
            self._flushed = self._size


def write_durably(path: Path, write: Callable[[Sink], None]) -> Written:
    """Let `write` fill the file `path`, whole or not at all; when this returns it is on the disk.

    Raises OSError where the disk refuses; `path` is then as it was, and nothing is left beside it.
    """
    temporary = _beside(path)
    try:
        written = _fill(temporary, write)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return written


def create_exclusively(path: Path, data: bytes) -> bool:
    """Create `path` with `data`, whole, unless it exists; return whether this call made it.

    Of any number of writers exactly one wins, and nobody sees half a file: `link` fails where a name is taken.
    On file systems without hard links the name is taken first and filled after, so a crash between the two
    can leave a file that its checksum exposes.
    """
    temporary = _beside(path)
    try:
        _fill(temporary, lambda sink: _write_all(sink, data))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                _fill(path, lambda sink: _write_all(sink, data))
            except FileExistsError:
                return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def make_directories(path: Path) -> None:
    """Make a directory, and what is missing above it, on the disk when this returns. Raises OSError."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the file system knows how."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def seal(record: dict[str, Any]) -> bytes:
    """A record as readable JSON that carries the checksum of itself."""
    sealed = {**record, _CHECKSUM: _checksum(record)}
    return json.dumps(sealed, indent=1, sort_keys=True).encode() + b"\n"


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The record in `data`. Raises DamagedError, which begins with `name`, unless it is as it was sealed."""
    try:
        record = json.loads(data)
        checksum = record.pop(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{name} is no whole record: {error}") from error
    if not isinstance(record, dict) or checksum != _checksum(record):
        raise DamagedError(f"{name} has been altered (its checksum differs)")
    return record


def write_record(path: Path, record: dict[str, Any]) -> bytes:
    """Seal a record into a file, durably, replacing what is there; return the file's content."""
    data = seal(record)
    write_durably(path, lambda sink: _write_all(sink, data))
    return data


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file. Raises DamagedError, also where the file is gone, and OSError."""
    try:
        return unseal(patiently(path.read_bytes), str(path))
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is gone") from error


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fill(path: Path, write: Callable[[Sink], None]) -> Written:
    with path.open("xb") as file, Helpers(1) as helpers:
        checking = _Checking(file, helpers)
        try:
            write(checking)
        except Exception as error:
            # torch's writer turns the file's error into one of its own that does not say what is wrong.
            raise checking.refusal or error from error
        file.flush()
        os.fsync(file.fileno())
    return checking.written()


def _write_all(sink: Sink, data: bytes) -> None:
    sink.write(data)


def _beside(path: Path) -> Path:
    # Random, so that what a killed process left never stands in the way of its successor.
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
