"""A disk that notes each write and each flush that the kernel sends to it.

It is a file in a file system of our own, served to the kernel over /dev/fuse (include/uapi/linux/fuse.h, protocol
7.31), with a loop device on top: what a real file system on it writes, and where it asks for its writes to be certain
(a flush), comes here. dm-log-writes does the same within the kernel, where that has been built in.
"""

import ctypes
import multiprocessing
import os
import select
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

_NAME: Final = "disk"
_LARGEST: Final = 1 << 20
_ROOT, _FILE = 1, 2
_FOREVER: Final = struct.pack("<QII", 1 << 30, 0, 0)
_NOSUID_NODEV: Final = 2 | 4

# Operations of the protocol.
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY, _BATCH_FORGET = 17, 18, 20, 25, 26, 38, 42
_ENOENT, _ENOSYS = 2, 38


@dataclass(frozen=True, slots=True)
class BlockWrite:
    """Bytes that were written at a place of the disk."""

    place: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """All writes before are certain."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the program said that writes to the disk."""

    word: str
    step: int


DiskEvent = BlockWrite | Flush | Said


class RecordedDisk:
    """A block device of zeros at first; `device` is its path."""

    def __init__(self, device: str, line: Connection) -> None:
        self.device = device
        self._line = line

    def note(self, word: str, step: int) -> None:
        """Put a word of the program among the events; returns when it is there."""
        self._line.send(Said(word, step))
        self._line.recv()

    def events(self) -> list[DiskEvent]:
        """What has happened so far."""
        self._line.send(None)
        events: list[DiskEvent] = self._line.recv()
        return events


@contextmanager
def recorded_disk(directory: Path, size: int) -> Iterator[RecordedDisk]:
    """A disk of `size` bytes, with its file system in `directory`. Needs root and /dev/fuse."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        raise RuntimeError("a recorded disk needs root and /dev/fuse (modprobe fuse)")
    mount_point = directory / "served"
    mount_point.mkdir()
    line, other_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=_serve, args=(mount_point, size, other_end))
    server.start()
    other_end.close()
    try:
        assert line.recv() == "ready"
        device = _output("losetup", "--find", "--show", str(mount_point / _NAME))
        try:
            yield RecordedDisk(device, line)
        finally:
            _output("losetup", "--detach", device)
    finally:
        _output("umount", str(mount_point))
        server.join()


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _serve(mount_point: Path, size: int, line: Connection) -> None:
    """The process in which the disk is."""
    libc = ctypes.CDLL(None, use_errno=True)
    kernel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={kernel},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"recorded", bytes(mount_point), b"fuse", _NOSUID_NODEV, options):
        raise OSError(ctypes.get_errno(), "cannot mount the recorded disk")
    line.send("ready")
    disk = _Disk(kernel, size)
    while True:
        ready, _, _ = select.select([kernel, line.fileno()], [], [])
        if kernel in ready:
            if not disk.answer():
                return
        else:
            try:
                said = line.recv()
            except EOFError:
                continue
            if said is None:
                line.send(disk.events)
            else:
                disk.events.append(said)
                line.send("noted")


class _Disk:
    """Answers the kernel's requests."""

    def __init__(self, kernel: int, size: int) -> None:
        self._kernel = kernel
        self._size = size
        self._content = bytearray(size)
        self.events: list[DiskEvent] = []

    def answer(self) -> bool:
        """Read one request and answer it; False when the file system has been unmounted."""
        try:
            request = os.read(self._kernel, _LARGEST + 4096)
        except OSError:  # ENODEV: unmounted
            return False
        _, operation, number, node = struct.unpack_from("<IIQQ", request)
        if operation == _DESTROY:
            return False
        if operation not in (_FORGET, _BATCH_FORGET):
            error, answer = self._do(operation, node, request[40:])
            os.write(self._kernel, struct.pack("<IiQ", 16 + len(answer), -error, number) + answer)
        return True

    def _do(self, operation: int, node: int, body: bytes) -> tuple[int, bytes]:
        if operation == _READ:
            place, size = struct.unpack_from("<QI", body, 8)
            return 0, bytes(self._content[place : place + size])
        if operation == _WRITE:
            place, size = struct.unpack_from("<QI", body, 8)
            data = body[40 : 40 + size]
            self._content[place : place + size] = data
            self.events.append(BlockWrite(place, data))
            return 0, struct.pack("<II", size, 0)
        if operation == _FSYNC:
            self.events.append(Flush())
            return 0, b""
        return self._tell(operation, node, body)

    def _tell(self, operation: int, node: int, body: bytes) -> tuple[int, bytes]:
        if operation == _INIT:
            read_ahead = struct.unpack_from("<I", body, 8)[0]
            return 0, struct.pack(
                "<IIIIHHIIHH8I", 7, 31, read_ahead, 0, 12, 10, _LARGEST, 1, 256, 0, *[0] * 8
            )
        if operation == _LOOKUP:
            if body.rstrip(b"\0") != _NAME.encode():
                return _ENOENT, b""
            return 0, struct.pack("<QQ", _FILE, 0) + struct.pack(
                "<QQII", 1 << 30, 1 << 30, 0, 0
            ) + self._about(_FILE)
        if operation in (_GETATTR, _SETATTR):
            return 0, _FOREVER + self._about(node)
        if operation == _OPEN:
            return 0, struct.pack("<QII", 1, 0, 0)
        if operation == _STATFS:
            return 0, struct.pack("<5Q10I", self._size // 4096, 0, 0, 2, 1, 4096, 255, 4096, *[0] * 7)
        return (0, b"") if operation in (_RELEASE, _FLUSH) else (_ENOSYS, b"")

    def _about(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == _ROOT else (stat.S_IFREG | 0o600, self._size)
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
