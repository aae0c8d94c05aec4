"""Files that are checked while they are read: what has been read counts only when all of it was what was written."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

from spot_training.train import checksum, pages
from spot_training.train.ahead import ReadAhead
from spot_training.train.checksum import BLOCK
from spot_training.train.files import DamagedError
from spot_training.train.helpers import Helpers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spot_training.train.files import Written

T = TypeVar("T")

_READERS: Final = min(4, os.cpu_count() or 1)
_APART: Final = 2
"""Blocks to read at once that are worth a thread each."""


class CheckedFile(io.RawIOBase):
    """An open file that is checked while it is read, so that a large one comes from the disk once.

    Several threads read where much is asked for. What has been read may only be used when `finish` has found all of it
    to be what was written. Raises DamagedError at once where the length differs, and where a block changes.
    `ahead`: all of it is going to be read, with other work in between.
    """

    def __init__(self, file: BinaryIO, expected: Written, *, ahead: bool = False) -> None:
        super().__init__()
        self._file = file
        self._expected = expected
        self._helpers = Helpers(_READERS)
        self._ahead: ReadAhead | None = None  # both are closed with it, also where it is refused here
        self._size = os.fstat(file.fileno()).st_size
        if self._size != expected.size:
            raise DamagedError(f"{file.name} has {self._size} bytes, {expected.size} were written")
        self._place = 0
        self._sums: list[int | None] = [None] * -(-self._size // BLOCK)
        self._parted: dict[
            int, memoryview
        ] = {}  # the blocks that the last read asked for in part: two at most
        if ahead:
            self._ahead = ReadAhead(file.fileno(), self._size)
        self.refusal: OSError | None = None
        """The disk's own error, which who reads may have turned into one that does not say what is wrong."""

    def close(self) -> None:
        """Let its threads end; the file itself stays open."""
        if self._ahead:
            self._ahead.close()
        self._helpers.close()
        super().close()

    def expect(self, parts: Iterable[tuple[int, int]]) -> None:
        """Say in which order it is going to be read: (start, end) of each part, in bytes. Only before it is read."""
        if self._ahead:
            self._ahead.start(parts)

    def finish(self) -> None:
        """Read what has not been asked for, and compare the whole. Raises DamagedError."""
        left = [block for block, found in enumerate(self._sums) if found is None]
        if left:
            buffers = [memoryview(bytearray(BLOCK)) for _ in range(_readers(len(left)))]
            self._share_out(left, lambda reader, block: buffers[reader])
        if checksum.combined(found or 0 for found in self._sums) != self._expected.checksum:
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
        if not target:
            return 0
        pages.prefer_large_for(target)
        start, end = self._place, self._place + len(target)
        first, last = start // BLOCK, (end - 1) // BLOCK
        in_part = [
            block
            for block in sorted({first, last})
            if block * BLOCK < start or min((block + 1) * BLOCK, self._size) > end
        ]
        parted = self._prepare(in_part)
        wanted = [block for block in range(first, last + 1) if block not in self._parted]
        if wanted:
            self._share_out(
                wanted,
                lambda _, block: (
                    parted[block] if block in parted else target[block * BLOCK - start :][:BLOCK]
                ),
            )
        self._parted = parted
        for block in in_part:
            at, till = max(start, block * BLOCK), min(end, (block + 1) * BLOCK)
            target[at - start : till - start] = parted[block][at - block * BLOCK : till - block * BLOCK]
        self._place = end
        return len(target)

    def read(self, size: int = -1, /) -> bytes:
        """As a file does, but never less than is asked for and there."""
        left = max(0, self._size - self._place)
        content = bytearray(left if size < 0 else min(size, left))
        self.readinto(content)
        return bytes(content)

    def _prepare(self, in_part: list[int]) -> dict[int, memoryview]:
        """Memory for these blocks, of which only parts are asked for; `_parted` keeps those that are there already."""
        spare = [memory for block, memory in self._parted.items() if block not in in_part]
        self._parted = {block: memory for block, memory in self._parted.items() if block in in_part}
        return {
            block: self._parted.get(block) or (spare.pop() if spare else memoryview(bytearray(BLOCK)))
            for block in in_part
        }

    def _share_out(self, blocks: list[int], where: Callable[[int, int], memoryview]) -> None:
        """Read whole blocks to `where` (reader, block) says."""
        readers = _readers(len(blocks))

        def read(reader: int) -> None:
            for block in blocks[reader::readers]:
                self._read(block, where(reader, block))

        self._helpers.share(read, readers)

    def _read(self, block: int, target: memoryview) -> None:
        if self._ahead and self._sums[block] is None:  # else it has been brought already
            self._ahead.wait(block)
        try:
            found = checksum.crc32(_read_at(self._file, block * BLOCK, target))
        except OSError as error:
            self.refusal = error
            raise
        before = self._sums[block]
        if before is not None and before != found:
            raise DamagedError(f"{self._file.name} changes while it is read")
        self._sums[block] = found
        if self._ahead:
            self._ahead.used(len(target))


def use(
    file: BinaryIO,
    expected: Written,
    reader: Callable[[BinaryIO], T],
    order: Callable[[BinaryIO], Iterable[tuple[int, int]]] = lambda file: (),
) -> T:
    """What `reader` makes of an open file that is exactly what was written. Raises DamagedError where it is not.

    `order` tells from the file in which order it will be read, where that is not from its start on.

    The file is checked while it is read, and not before or after: what comes of a damaged one is thrown away, unseen
    by the program, and whatever goes wrong on the way is then the damage's fault.
    """
    with CheckedFile(file, expected, ahead=True) as content:
        try:
            content.expect(order(cast("BinaryIO", content)))
            content.seek(0)
            made = reader(cast("BinaryIO", content))
        except Exception as error:
            content.finish()
            raise content.refusal or error from error
        content.finish()
    return made


def read(file: BinaryIO, expected: Written) -> bytes:
    """All of an open file. Raises DamagedError where it is not what was written."""
    return use(file, expected, lambda content: content.read())


def verify(file: BinaryIO, expected: Written) -> None:
    """Read an open file through and compare. Raises DamagedError with the difference."""
    with CheckedFile(file, expected) as checked:
        checked.finish()


def _read_at(file: BinaryIO, place: int, buffer: memoryview) -> memoryview:
    """What fits of a file into the buffer; its place in the file stays as it was."""
    filled = 0
    while filled < len(buffer) and (count := os.preadv(file.fileno(), [buffer[filled:]], place + filled)):
        filled += count
    return buffer[:filled]


def _readers(blocks: int) -> int:
    return max(1, min(_READERS, blocks // _APART))
