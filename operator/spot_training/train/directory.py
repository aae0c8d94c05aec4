"""The checkpoint directory: one sub-directory for each attempt, so that attempts cannot harm each other.

Layout (names in <> vary; every ``.json`` but a state is a record sealed with its own checksum)::

    <checkpoint directory>/
      <fence>/                          an attempt's own; its name orders the attempts, as a string
        started.json                    first of all: this attempt exists
        accepted.json                   created once: the older checkpoints that this attempt may load
        step-000000000150/              a checkpoint, after 150 whole steps
          state.pt | state.json         what all ranks have alike, written by rank 0
          rank-00000.pt | .json ...     what each rank has of its own: its random numbers, its sampler
          manifest.json                 last: size and checksum of each file; with it the checkpoint exists
        step-000000000150.1/            a second save at that step: the first stays until this one is whole
        damaged-step-000000000100/      was found damaged, kept to be looked at; delete it by hand
        completed.json                  the program came to its end

Nobody checks and then writes. An attempt that the cluster believes dead may still run (a zombie), and may wake
between any check and the write; so writing needs no check, because nobody else writes there, and reading is
settled by a list made once. ``accepted.json`` is created exclusively, before anything is loaded or saved, and
names each older checkpoint with the digest of its manifest. What a zombie writes after that is in no list, nor
in the list of any later attempt: those take over the newest older attempt's own checkpoints and its list, and
never look past it.

Removing is the current attempt's alone. A zombie that has not seen its successor's ``started.json`` may be in
the middle of removing; it then removes nothing of the newest few that were whole before its look, and the
successor makes its list after that look: what the successor loads stays. A zombie that sees it removes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spot_training.train import files
from spot_training.train.fence import check_fence, fence_after, local_fence
from spot_training.train.files import DamagedError
from spot_training.train.manifest import FORMAT, MANIFEST, UNREAD, Entry, step_name
from spot_training.train.patience import patiently

if TYPE_CHECKING:
    from pathlib import Path

    from spot_training.train.manifest import Manifest

STARTED: Final = "started.json"
ACCEPTED: Final = "accepted.json"
COMPLETED: Final = "completed.json"
DAMAGED: Final = "damaged-"
_STEP: Final = re.compile(r"step-(\d{12})(?:\.([1-9]\d*))?")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest` few and, where `every_steps` is set, the first of each so many steps."""

    newest: int
    every_steps: int | None = None

    def choose(self, usable: list[Entry]) -> list[Entry]:
        """Those that stay, of `usable`, which are the newest first; of several saves at one step only the last."""
        last = {(entry.fence, entry.step): entry for entry in reversed(usable)}
        usable = [entry for entry in usable if last[entry.fence, entry.step] is entry]
        kept = usable[: self.newest]
        if self.every_steps:
            first = {entry.step // self.every_steps: entry for entry in usable}  # the oldest wins
            kept += [entry for number, entry in first.items() if number and entry not in kept]
        return kept


class CheckpointDirectory:
    """One attempt's view of a checkpoint directory; in a gang only rank 0 has one.

    `fence` None is a run outside the operator: it gets a fence of its own. `resume` is another job's directory,
    only read, and only where there is no checkpoint of our own. Making one shows that this attempt exists and
    records which older checkpoints it may load, in this order: whoever removes old checkpoints either sees the
    newcomer, or had looked before it made its list. A process that starts again under the same fence (torchrun
    does that) finds the first one's record and keeps to it. `now` is seconds since the epoch.

    Raises ValueError for a fence that cannot name a directory, OSError where the directory cannot be written,
    DamagedError where this attempt's own record is.
    """

    def __init__(self, root: Path, fence: str | None, resume: Path | None, now: float) -> None:
        self._root = root
        files.make_directories(root)
        if fence is None:
            self.fence = _claim_local_fence(root, now)
        else:
            self.fence = check_fence(fence)
            (root / fence).mkdir(exist_ok=True)
        files.sync_directory(root)
        self._own = root / self.fence
        about = {"time": now, "host": socket.gethostname(), "pid": os.getpid()}
        files.create_exclusively(self._own / STARTED, files.seal(self._about(STARTED) | about))
        record = self._accept(resume, now)
        self._borrowed = _entries(resume, record["borrowed"]) if resume else []
        self._inherited = _entries(root, record["accepted"])
        self._damaged: list[Entry] = []
        self._unread: list[Entry] = []
        self.trouble: str | None = record["trouble"]
        """Why the list of older checkpoints may lack some; None where it does not."""
        self.completed: dict[str, Any] | None = _completed(self._own) or record["completed"]
        """What was recorded when the program came to its end, in this attempt or before; None: not yet."""

    def candidates(self) -> list[Entry]:
        """What may be loaded, the best first: this attempt's own, then what it has accepted."""
        return [*_checkpoints(self._root, self.fence), *self._inherited, *self._borrowed]

    def pass_over(self, entry: Entry, *, damaged: bool) -> None:
        """Note that a checkpoint is `damaged`, or else that it could not be read: it may be whole.

        It stays where it is until this attempt has saved another. What could not be read does not count as
        kept, and stays as long as it would if it did.
        """
        (self._damaged if damaged else self._unread).append(entry)

    def is_borrowed(self, entry: Entry) -> bool:
        """Whether it is another job's checkpoint, from the directory to resume from."""
        return entry.root != self._root

    def prepare(self, step: int) -> tuple[Path, int]:
        """Make the empty directory of a checkpoint that is about to be written; that and the edition it will be.

        What a killed process left of this step without a manifest is removed, and what was passed over when this
        process loaded is put aside. What is whole stays as it is, under its name, until the new one is whole, too: a
        successor may have that name in its list.
        """
        for entry in [
            entry for entry in self._damaged if entry.path.parent == self._own and entry.step == step
        ]:
            if entry.path.exists():
                _put_aside(entry.path)
            self._damaged.remove(entry)
        self.discard(step)
        edition = 1 + max((last for _, at, last in _step_directories(self._own) if at == step), default=-1)
        path = self._own / step_name(step, edition)
        path.mkdir()
        files.sync_directory(self._own)
        return path, edition

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest: from its rename on, and not before, the checkpoint exists. Raises OSError."""
        name = step_name(manifest.step, manifest.edition)
        files.write_record(self._own / name / MANIFEST, manifest.record())

    def discard(self, step: int) -> None:
        """Remove what a save of this step has left that did not end, so that a full disk has that room again."""
        for path, at, _ in _step_directories(self._own):
            if at == step and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)

    def complete(self, record: dict[str, Any]) -> None:
        """Record durably that the program came to its end. Raises OSError."""
        files.write_record(self._own / COMPLETED, self._about(COMPLETED) | record)
        self.completed = record

    def prune(self, keep: Keep) -> bool:
        """Remove all checkpoints but those to `keep`, whichever of this and older attempts wrote them.

        Those that were passed over are renamed, never removed. Does nothing and returns False once a newer
        attempt has started. Raises OSError where something cannot be removed.
        """
        attempts = _attempts(self._root)
        if any(fence > self.fence for fence in attempts):
            return False
        for entry in self._damaged:
            if not self.is_borrowed(entry) and entry.path.exists():
                _put_aside(entry.path)
        self._inherited = [entry for entry in self._inherited if entry not in self._damaged]
        self._damaged = []
        own = _checkpoints(self._root, self.fence)
        usable = [*own, *self._inherited]
        read = [entry for entry in usable if entry not in self._unread]
        kept = {entry.name for entry in [*keep.choose(read), *keep.choose(usable)]}
        for fence in attempts:
            for path, *place in _step_directories(self._root / fence):
                # Without a manifest, and newer than our newest: not a leftover, perhaps, but a save under way.
                under_way = fence == self.fence and (not own or place > [own[0].step, own[0].edition])
                if f"{fence}/{path.name}" not in kept and not under_way:
                    _remove_checkpoint(path)
            if fence != self.fence and not any(name.startswith(f"{fence}/") for name in kept):
                _remove_attempt(self._root / fence)
        return True

    def _accept(self, resume: Path | None, now: float) -> dict[str, Any]:
        inherited, completed, trouble = _chain(self._root, self.fence)
        borrowed = _chain(resume, None)[0] if resume and not inherited and not trouble else []
        record = {
            **self._about(ACCEPTED),
            "time": now,
            "accepted": [_listed(entry) for entry in inherited],
            "borrowed": [_listed(entry) for entry in borrowed],
            "completed": completed,
            "trouble": trouble,
        }
        if files.create_exclusively(self._own / ACCEPTED, files.seal(record)):
            return record
        return _read_record(self._own / ACCEPTED)

    def _about(self, name: str) -> dict[str, Any]:
        """What each record of this attempt begins with, so that one in another's place is known for what it is."""
        return {"format": FORMAT, "record": name, "fence": self.fence}


def _chain(root: Path, before: str | None) -> tuple[list[Entry], dict[str, Any] | None, str | None]:
    """What an attempt takes over: checkpoints, the record of completion, and why something may be missing.

    All comes from the newest attempt older than `before` that had got as far as its own list: before that it
    cannot have saved. A list that is damaged leaves that attempt's own checkpoints; looking past it would
    let in what a zombie has written.
    """
    for fence in sorted(_attempts(root), reverse=True):
        attempt = root / fence
        if (before is not None and fence >= before) or not (attempt / ACCEPTED).exists():
            continue
        own = _checkpoints(root, fence)
        try:
            record = _read_record(attempt / ACCEPTED)
        except DamagedError as error:
            return own, _completed(attempt), str(error)
        older = _entries(root, record["accepted"])
        left = [entry for entry in older if (entry.path / MANIFEST).exists()]
        trouble = record["trouble"]
        if older and not left:
            trouble = f"the {len(older)} checkpoints that attempt {fence} had accepted are gone"
        return [*own, *left], _completed(attempt) or record["completed"], None if own else trouble
    return [], None, None


def _attempts(root: Path) -> list[str]:
    """The fences of all attempts that have started; other things in the directory are not ours."""
    return [path.name for path in root.iterdir() if (path / STARTED).exists()]


def _step_directories(attempt: Path) -> list[tuple[Path, int, int]]:
    """Each with the step and the edition that its name says."""
    found = ((path, _STEP.fullmatch(path.name)) for path in attempt.iterdir())
    return [(path, int(match[1]), int(match[2] or 0)) for path, match in found if match]


def _checkpoints(root: Path, fence: str) -> list[Entry]:
    """An attempt's checkpoints, the newest first, with the digests that their manifests have now."""
    entries = []
    for path, step, edition in sorted(
        _step_directories(root / fence), key=lambda each: each[1:], reverse=True
    ):
        try:
            digest = hashlib.sha256(patiently((path / MANIFEST).read_bytes)).hexdigest()
        except FileNotFoundError:  # a save that was not finished
            continue
        except OSError:  # listed all the same, so that it is told, and that nothing begins anew for it
            digest = UNREAD
        entries.append(Entry(root, fence, step, digest, edition))
    return entries


def _completed(attempt: Path) -> dict[str, Any] | None:
    try:
        return _read_record(attempt / COMPLETED)
    except (DamagedError, OSError):  # or, nearly always, not there: then the last checkpoint's step tells
        return None


def _read_record(path: Path) -> dict[str, Any]:
    """An attempt's record. Raises DamagedError, also where it is one of another attempt or of another kind."""
    record = files.read_record(path)
    of = (record.get("fence"), record.get("record"))
    if of != (path.parent.name, path.name):
        raise DamagedError(f"{path} holds another record: {of[1]} of attempt {of[0]}")
    return record


def _listed(entry: Entry) -> dict[str, Any]:
    place = {"fence": entry.fence, "step": entry.step, "edition": entry.edition}
    return {**place, "manifest": entry.digest}


def _entries(root: Path, listed: list[dict[str, Any]]) -> list[Entry]:
    return [
        Entry(root, item["fence"], item["step"], item["manifest"], item.get("edition", 0)) for item in listed
    ]


def _claim_local_fence(root: Path, now: float) -> str:
    """Make the directory of an attempt that no operator has named. Of two starts at once each gets its own."""
    fence = local_fence(now, _attempts(root))
    while True:
        try:
            (root / fence).mkdir()
        except FileExistsError:
            fence = fence_after(fence)
        else:
            return fence


def _put_aside(path: Path) -> None:
    names = (f"{DAMAGED}{path.name}{f'.{number}' if number else ''}" for number in itertools.count())
    path.rename(next(target for target in map(path.with_name, names) if not target.exists()))


def _remove_checkpoint(path: Path) -> None:
    # The manifest first: a kill in between leaves a save that was not finished, not a checkpoint with holes.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _remove_attempt(path: Path) -> None:
    """Remove an older attempt's records, and its directory unless something damaged is kept there."""
    for file in path.iterdir():
        if file.is_file():
            file.unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()
