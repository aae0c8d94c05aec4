"""Files that are whole or not there, also when the process or the machine dies at any instant.

A file is written under another name in the same directory, flushed to the disk, and renamed: POSIX makes the
rename atomic. The directory is then flushed as well, since a name is data of its directory and may be lost
without it. What is read back is compared with a checksum, because a disk or a network file system may still
lose or alter what it has acknowledged.

A file's checksum is the SHA-256 over the CRC-32s of its blocks of 1 MiB, in their order. It guards against accidents,
not against people, who could alter the manifest as well. As in HDFS (``DFS_CHECKSUM``), CRC is there because it
costs a fraction of a cryptographic hash, and blocks because several threads can then read one file: on a fast disk, a
SHA-256 over all of it takes longer than the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from spot_training.train import pages
from spot_training.train.helpers import Helpers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_BLOCK: Final = 1 << 20
_ASIDE: Final = 1 << 20
"""Bytes in one piece that are worth a thread of their own for their checksum."""
_FLUSHED_AT_ONCE: Final = 16 << 20
_READERS: Final = 4
_APART: Final = 2
"""Blocks to read at once that are worth a thread each."""
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
        return Written(self._size, _combined(self._checksums))

    def _pass_on(self, view: memoryview) -> None:
        try:
            self._file.write(view)
        except OSError as error:
            self.refusal = error
            raise

    def _check(self, view: memoryview) -> None:
        start = 0
        while start < len(view):
            if self._size % _BLOCK == 0:
                self._checksums.append(0)
            end = min(len(view), start + _BLOCK - self._size % _BLOCK)
            self._checksums[-1] = zlib.crc32(view[start:end], self._checksums[-1])
            self._size += end - start
            start = end

    def _begin_to_flush(self) -> None:
        waiting = self._size - self._flushed
        if waiting >= _FLUSHED_AT_ONCE:
            with contextlib.suppress(OSError, AttributeError):  # not everywhere; fsync does it all the same
                os.posix_fadvise(self._file.fileno(), self._flushed, waiting, os.POSIX_FADV_DONTNEED)
            self._flushed = self._size


class CheckedFile(io.RawIOBase):
    """An open file that is checked while it is read, so that a large one comes from the disk once.

    Several threads read where much is asked for. What has been read may only be used when `finish` has found all of it
    to be what was written. Raises DamagedError at once where the length differs, and where a block changes.
    """

    def __init__(self, file: BinaryIO, expected: Written) -> None:
        super().__init__()
        self._file = file
        self._expected = expected
        self._size = os.fstat(file.fileno()).st_size
        if self._size != expected.size:
            raise DamagedError(f"{file.name} has {self._size} bytes, {expected.size} were written")
        self._place = 0
        self._checksums: list[int | None] = [None] * -(-self._size // _BLOCK)
        self._last: tuple[int, memoryview] = (-1, memoryview(b""))  # the block that was read last in part
        self._helpers = Helpers(_READERS)

    def close(self) -> None:
        """Let its threads end; the file itself stays open."""
        self._helpers.close()
        super().close()

    def finish(self) -> None:
        """Read what has not been asked for, and compare the whole. Raises DamagedError."""
        left = [block for block, checksum in enumerate(self._checksums) if checksum is None]
        if left:
            buffers = [memoryview(bytearray(_BLOCK)) for _ in range(_readers(len(left)))]
            self._share_out(left, lambda reader, block: buffers[reader])
        if _combined(checksum or 0 for checksum in self._checksums) != self._expected.checksum:
            raise DamagedError(
                f"{self._file.name} has another content than was written (its checksum differs)"
            )

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Have the next read begin elsewhere."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """All that is asked for, unless the file ends before."""
        target = memoryview(buffer).cast("B")[: max(0, self._size - self._place)]
        pages.prefer_large_for(target)
        start, end = self._place, self._place + len(target)
        whole = [
            block
            for block in range(-(-start // _BLOCK), -(-end // _BLOCK))
            if min((block + 1) * _BLOCK, self._size) <= end
        ]
        self._share_out(whole, lambda _, block: target[block * _BLOCK - start :][:_BLOCK])
        for block in {start // _BLOCK, (end - 1) // _BLOCK}.difference(whole) if target else ():
            content = self._in_part(block)
            first, last = max(start, block * _BLOCK), min(end, (block + 1) * _BLOCK)
            target[first - start : last - start] = content[first - block * _BLOCK : last - block * _BLOCK]
        self._place = end
        return len(target)

    def read(self, size: int = -1, /) -> bytes:
        """As a file does, but never less than is asked for and there."""
        left = max(0, self._size - self._place)
        content = bytearray(left if size < 0 else min(size, left))
        self.readinto(content)
        return bytes(content)

    def _in_part(self, block: int) -> memoryview:
        if self._last[0] != block:
            content = memoryview(bytearray(min(_BLOCK, self._size - block * _BLOCK)))
            self._read(block, content)
            self._last = (block, content)
        return self._last[1]

    def _share_out(self, blocks: list[int], where: Callable[[int, int], memoryview]) -> None:
        """Read whole blocks to `where` (reader, block) says."""
        readers = _readers(len(blocks))

        def read(reader: int) -> None:
            for block in blocks[reader::readers]:
                self._read(block, where(reader, block))

        self._helpers.share(read, readers)

    def _read(self, block: int, target: memoryview) -> None:
        checksum = zlib.crc32(_read_at(self._file, block * _BLOCK, target))
        before = self._checksums[block]
        if before is not None and before != checksum:
            raise DamagedError(f"{self._file.name} changes while it is read")
        self._checksums[block] = checksum


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
    """Read an open file through and compare. Raises DamagedError with the difference."""
    with CheckedFile(file, expected) as checked:
        checked.finish()


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


def _read_at(file: BinaryIO, place: int, buffer: memoryview) -> memoryview:
    """What fits of a file into the buffer; its place in the file stays as it was."""
    filled = 0
    while filled < len(buffer) and (count := os.preadv(file.fileno(), [buffer[filled:]], place + filled)):
        filled += count
    return buffer[:filled]


def _combined(checksums: Iterable[int]) -> str:
    return hashlib.sha256(b"".join(checksum.to_bytes(4, "big") for checksum in checksums)).hexdigest()


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


def _readers(blocks: int) -> int:
    return max(1, min(_READERS, os.cpu_count() or 1, blocks // _APART))
