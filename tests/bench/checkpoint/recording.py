"""Notes every change that this process makes to a directory, in order, with what it means to flush to the disk.

The functions of `os` and `io` through which Python changes files are replaced while a recording runs. Whether all was
seen is not taken for granted: `finish` compares what the notes amount to with what is in the directory.
"""

# Functions of `os` are replaced here by others of the same kind.
# ruff: noqa: PTH100, PTH115, PTH116, PTH118

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

ROOT: Final = 0
"""The number of the directory that is watched."""


@dataclass(frozen=True, slots=True)
class Enter:
    """A name that a directory has got: of a new file or directory, or another of an old one."""

    directory: int
    name: str
    node: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A name that a directory has lost."""

    directory: int
    name: str


@dataclass(frozen=True, slots=True)
class Move:
    """A rename within one directory: one change, whole or not at all."""

    directory: int
    name: str
    target: str
    node: int


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written to a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or directory that was flushed: what was done to it before is on the disk."""

    node: int


@dataclass(frozen=True, slots=True)
class Note:
    """What the program that is recorded says."""

    word: str
    step: int


Change = Enter | Leave | Move | Write
Event = Change | Sync | Note

Tree = dict[str, bytes | None]
"""Paths below the root with their content; None is a directory."""


class Killed(BaseException):
    """The process that is recorded would be dead by now; nobody catches this on the way but who recorded it."""


@dataclass
class Recording:
    """What happened below `root`; `directories` are the numbers that are directories'.

    Once there are `ends_at` events, whatever would change something raises `Killed` instead, as if by SIGKILL.
    """

    root: Path
    events: list[Event] = field(default_factory=list)
    directories: set[int] = field(default_factory=lambda: {ROOT})
    ends_at: int | None = None
    _numbers: dict[int, int] = field(default_factory=dict)  # by inode; of a new file it is set anew
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0

    def note(self, word: str, step: int) -> None:
        """Put a word of the program among the events."""
        with self._lock:
            self.events.append(Note(word, step))

    def replay(self, changes: Callable[[int, Change], Change | None] | None = None) -> Tree:
        """What the events amount to. `changes`, given each change and its place, may alter or drop (None) it."""
        names: dict[int, dict[str, int]] = {number: {} for number in self.directories}
        contents: dict[int, bytearray] = {}
        for place, event in enumerate(self.events):
            if isinstance(event, (Sync, Note)):
                continue
            change = changes(place, event) if changes else event
            match change:
                case Enter(directory, name, node):
                    names[directory][name] = node
                case Leave(directory, name):
                    names[directory].pop(name, None)
                case Move(directory, name, target, node):
                    names[directory].pop(name, None)
                    names[directory][target] = node
                case Write(node, offset, data):
                    content = contents.setdefault(node, bytearray())
                    content.extend(bytes(max(0, offset - len(content))))
                    content[offset : offset + len(data)] = data
        return dict(_tree(ROOT, "", names, contents))

    def finish(self) -> None:
        """Raise AssertionError where a change was made that was not seen."""
        seen, there = self.replay(), dict(_read(self.root))
        assert seen == there, (
            f"changes that were not seen: {sorted(seen.keys() ^ there.keys())} are only in one of both; "
            f"{[path for path in seen.keys() & there.keys() if seen[path] != there[path]]} differ"
        )

    # --- what the replaced functions call, under the lock ---

    def _live(self) -> None:
        if self.ends_at is not None and len(self.events) >= self.ends_at:
            raise Killed

    def _inside(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def _directory(self, path: str) -> tuple[int, str]:
        parent, name = os.path.split(path)
        return self._node(parent), name

    def _node(self, path: str) -> int:
        return self._numbers[os.stat(path).st_ino]

    def _born(self, path: str, *, directory: bool) -> None:
        self._count += 1
        self._numbers[os.stat(path).st_ino] = self._count
        if directory:
            self.directories.add(self._count)
        self.events.append(Enter(*self._directory(path), self._count))


@contextmanager
def recording(root: Path) -> Iterator[Recording]:
    """Record what this process does below `root`, an empty directory, until the block ends."""
    root = root.resolve()
    assert not list(root.iterdir()), f"{root} is not empty"
    record = Recording(root)
    record._numbers[root.stat().st_ino] = ROOT
    with (
        patch.multiple(os, **_Recorded(record).functions()),
        patch.object(io, "open", _recorded_open(record)),
    ):
        yield record
    record.finish()


class _RecordedFile(io.FileIO):
    """A file that was opened for writing below the root."""

    def __init__(self, record: Recording, path: str, mode: str) -> None:
        with record._lock:
            record._live()
            new = not os.path.lexists(path)
            assert new, f"{path} is written in place: that is for the model of a crash to learn first"
            super().__init__(path, mode)
            self._record = record
            record._born(path, directory=False)

    def write(self, data: Any, /) -> int:
        with self._record._lock:
            self._record._live()
            offset = self.tell()
            count = super().write(data)
            assert count is not None
            node = self._record._numbers[os.fstat(self.fileno()).st_ino]
            written = bytes(memoryview(data).cast("B")[:count])
            self._record.events.append(Write(node, offset, written))
            return count

    def truncate(self, size: int | None = None, /) -> int:
        raise AssertionError(f"{self.name} is truncated: that is for the model of a crash to learn first")


def _recorded_open(record: Recording) -> Callable[..., Any]:
    really = io.open

    def recorded(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        reads = not set(mode) & set("wxa+")
        if isinstance(file, int) or reads or not record._inside(os.path.abspath(file)):
            return really(file, mode, buffering, *rest, **more)
        assert "b" in mode, f"{file} is opened for writing text: that is for the recording to learn first"
        raw = _RecordedFile(record, os.path.abspath(file), mode)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    return recorded


class _Recorded:
    """`os` as a program sees it that is recorded: what it does is done, and noted where it is below the root."""

    def __init__(self, record: Recording) -> None:
        self._record = record
        self._really = {name: getattr(os, name) for name in ("mkdir", "rmdir", "unlink", "rename", "link")}

    def functions(self) -> dict[str, Any]:
        """Under the names that they have in `os`."""
        same: dict[str, Any] = {"remove": self.unlink, "replace": self.rename, "fdatasync": self.fsync}
        return same | {name: getattr(self, name) for name in (*self._really, "fsync")}

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._record._lock:
            self._record._live()
            self._really["mkdir"](path, mode, dir_fd=dir_fd)
            if self._record._inside(at := _where(path, dir_fd)):
                self._record._born(at, directory=True)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def _remove(self, how: str, path: Any, dir_fd: int | None) -> None:
        with self._record._lock:
            self._record._live()
            at = _where(path, dir_fd)
            self._really[how](path, dir_fd=dir_fd)
            if self._record._inside(at):
                self._record.events.append(Leave(*self._record._directory(at)))

    def rename(self, source: Any, target: Any) -> None:
        with self._record._lock:
            self._record._live()
            self._really["rename"](source, target)
            old, new = _where(source), _where(target)
            if self._record._inside(old) or self._record._inside(new):
                (directory, name), (into, there) = self._record._directory(old), self._record._directory(new)
                assert directory == into, f"{old} is moved into another directory"
                self._record.events.append(Move(directory, name, there, self._record._node(new)))

    def link(self, source: Any, target: Any) -> None:
        with self._record._lock:
            self._record._live()
            self._really["link"](source, target)
            if self._record._inside(at := _where(target)):
                self._record.events.append(Enter(*self._record._directory(at), self._record._node(at)))

    def fsync(self, descriptor: int) -> None:
        """Only noted: it is the notes that count here, and flushing takes its time."""
        with self._record._lock:
            self._record._live()
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self._record._inside(f"{path}/"):
                self._record.events.append(Sync(self._record._node(path)))


def _where(path: Any, dir_fd: int | None = None) -> str:
    base = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.abspath(os.path.join(base, os.fspath(path)))


def _tree(
    number: int, path: str, names: dict[int, dict[str, int]], contents: dict[int, bytearray]
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in names[number].items():
        at = f"{path}/{name}" if path else name
        if node in names:
            yield at, None
            yield from _tree(node, at, names, contents)
        else:
            yield at, bytes(contents.get(node, b""))


def _read(root: Path) -> Iterator[tuple[str, bytes | None]]:
    for path in sorted(root.rglob("*")):
        yield str(path.relative_to(root)), path.read_bytes() if path.is_file() else None
