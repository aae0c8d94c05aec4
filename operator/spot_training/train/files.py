"""Files that are whole or not there, also when the process or the machine dies at any instant.

A file is written under another name in the same directory, flushed to the disk, and renamed: POSIX makes the
rename atomic. The directory is then flushed as well, since a name is data of its directory and may be lost
without it. What is read back is compared with a checksum, because a disk or a network file system may still
lose or alter what it has acknowledged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK: Final = 4 << 20
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
    """What a whole file must be: its length in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


class _Hashing:
    """Passes bytes on to a file and hashes them on the way, so that nothing is read back to be hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0
        self.refusal: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.refusal = error
            raise
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def written(self) -> Written:
        return Written(self._size, self._hash.hexdigest())


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


def verify(file: BinaryIO, expected: Written) -> None:
    """Read an open file through and compare; it is left at its start. Raises DamagedError with the difference."""
    size = os.fstat(file.fileno()).st_size
    if size != expected.size:
        raise DamagedError(f"{file.name} has {size} bytes, {expected.size} were written")
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != expected.sha256:
        raise DamagedError(f"{file.name} has another content than was written (its SHA-256 differs)")
    file.seek(0)


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
        return unseal(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is gone") from error


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fill(path: Path, write: Callable[[Sink], None]) -> Written:
    with path.open("xb") as file:
        hashing = _Hashing(file)
        try:
            write(hashing)
        except Exception as error:
            # torch's writer turns the file's error into one of its own that does not say what is wrong.
            raise hashing.refusal or error from error
        file.flush()
        os.fsync(file.fileno())
    return hashing.written()


def _write_all(sink: Sink, data: bytes) -> None:
    sink.write(data)


def _beside(path: Path) -> Path:
    # Random, so that what a killed process left never stands in the way of its successor.
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
