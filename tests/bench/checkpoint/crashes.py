"""What a power failure may leave of what a program has written, and whether it can go on from there.

The model is the weakest that POSIX allows, as ALICE has it (Pillai et al., "All File Systems Are Not Created Equal",
OSDI 2014): only what was flushed by `fsync`, of the file for its content, of the directory for its names, is certain.
Of everything else any part may be on the disk, in any order: a rename without the content, the last block without the
first, a torn sector, blocks that were given to a file and never written. Real file systems keep more of the order.
"""

import contextlib
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from spot_training.train import Training
from tests.bench.checkpoint.recording import Change, Killed, Note, Recording, Sync, Tree, Write, recording
from tests.bench.checkpoint.subject import Pattern, be_quiet, open_training, unflushed

_SECTOR: Final = 512
_SIZE: Final = 6_000
"""Of the state: some sectors, so that they can be torn apart."""
_RANDOM: Final = 30
"""Random states at each instant, beside the systematic ones."""
_LATER: Final = 99
_WITHIN_A_SAVE: Final = (11, 33)
"""So many events after a program has begun to load, it saves."""


@dataclass(frozen=True)
class Crash:
    """A state that is left: after the event `instant`, of the changes at `lost` nothing, those at `torn` in part."""

    instant: int
    lost: frozenset[int]
    torn: frozenset[int]
    acknowledged: int
    begun: int


@dataclass
class Crashes:
    """What loading from many such states has shown."""

    instants: int = 0
    states: int = 0
    torn_loads: list[str] = field(default_factory=list)
    older_than_acknowledged: list[str] = field(default_factory=list)
    not_loaded: list[str] = field(default_factory=list)


def record_program(directory: Path, chance: random.Random) -> Recording:
    """Attempts that save, at once and in the background, some steps twice, remove what is old, are killed in a save,
    and complete.
    """
    be_quiet()
    with recording(directory) as record:
        _save(record, 1, steps=3, background=False)
        _save(record, 1, steps=3, background=True)
        for attempt in (2, 3, 4):
            _save(record, attempt, steps=1, background=False)
            record.ends_at = len(record.events) + chance.randint(*_WITHIN_A_SAVE)
            with contextlib.suppress(Killed):
                _save(record, attempt, steps=3, background=False, twice=attempt != 2)
            record.ends_at = None
        _save(record, 5, steps=2, background=False, twice=True)
        _save(record, 5, steps=1, background=True).complete()
    return record


def _save(record: Recording, attempt: int, *, steps: int, background: bool, twice: bool = False) -> Training:
    state = Pattern(_SIZE)
    training = open_training(record.root / "checkpoints", attempt, state, background=background)
    try:
        training.load()
        for _ in range(steps):
            training.step += 1
            for _ in range(1 + twice):
                state.become(training.step)
                record.note("begun", training.step)
                save = training.save()
                if background:
                    state.become(1_000_000)
                save.wait()
                record.note("acknowledged", training.step)
            state.become(training.step)
        return training
    finally:
        training.close()


def try_crashes(
    record: Recording, directory: Path, chance: random.Random, result: Crashes, limit: int
) -> None:
    """Let the library load from what a crash may leave at any instant, laid out in `directory`.

    `limit` states are drawn from all; the same state twice is tried, and counted, once.
    """
    be_quiet()
    every = list(_crashes(record, chance))
    drawn = chance.sample(every, min(limit, len(every)))
    result.instants += len({crash.instant for crash in drawn})
    seen: set[bytes] = set()
    for crash in drawn:
        tree = record.replay(_keeping(crash, chance))
        digest = hashlib.sha256(repr((crash.acknowledged, sorted(tree.items()))).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            _try(record, crash, tree, directory / f"state-{len(seen)}", result)
    result.states += len(seen)


def _crashes(record: Recording, chance: random.Random) -> Iterator[Crash]:
    acknowledged = begun = 0
    for instant, event in enumerate(record.events):
        if isinstance(event, Note):
            acknowledged = event.step if event.word == "acknowledged" else acknowledged
            begun = event.step if event.word == "begun" else begun
            continue
        for lost, torn in _choices(_uncertain(record, instant), chance):
            yield Crash(instant, lost, torn, acknowledged, begun)


def _try(record: Recording, crash: Crash, tree: Tree, directory: Path, result: Crashes) -> None:
    lay_out(tree, directory)
    state = Pattern(_SIZE)
    try:
        with unflushed():
            training = open_training(directory / "checkpoints", _LATER, state)
            try:
                step = training.load()
            finally:
                training.close()
    except Exception as error:
        result.not_loaded.append(f"{error!r} {_describe(record, crash)}")
        return
    if not state.is_of(step) or step > crash.begun:
        result.torn_loads.append(f"step {step} {_describe(record, crash)}")
    if step < crash.acknowledged:
        result.older_than_acknowledged.append(f"step {step} {_describe(record, crash)}")
    shutil.rmtree(directory)


def lay_out(tree: Tree, directory: Path) -> None:
    """Make a tree as files in `directory`."""
    directory.mkdir()
    for path, content in tree.items():
        if content is None:
            (directory / path).mkdir(parents=True, exist_ok=True)
        else:
            (directory / path).write_bytes(content)


def _uncertain(record: Recording, instant: int) -> list[int]:
    """The places of the changes up to `instant` that no flush up to there has made certain."""
    flushed: set[int] = set()
    places = []
    for place in range(instant, -1, -1):
        event = record.events[place]
        if isinstance(event, Sync):
            flushed.add(event.node)
        elif not isinstance(event, Note):
            node = event.node if isinstance(event, Write) else event.directory
            if node not in flushed:
                places.append(place)
    return places


def _choices(uncertain: list[int], chance: random.Random) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """Which of the uncertain changes are lost, and which torn: none, all, each alone, all but each, and any."""
    everything, nothing = frozenset(uncertain), frozenset[int]()
    yield nothing, nothing
    if not uncertain:
        return
    yield everything, nothing
    yield nothing, everything
    for place in uncertain:
        yield frozenset({place}), nothing
        yield nothing, frozenset({place})
        yield everything - {place}, nothing
    for _ in range(_RANDOM):
        lost = frozenset(place for place in uncertain if chance.random() < 0.5)
        yield lost, frozenset(place for place in everything - lost if chance.random() < 0.5)


def _keeping(crash: Crash, chance: random.Random) -> Callable[[int, Change], Change | None]:
    def keep(place: int, change: Change) -> Change | None:
        if place > crash.instant or place in crash.lost:
            return None
        if place in crash.torn and isinstance(change, Write):
            return _tear(change, chance)
        return change

    return keep


def _tear(write: Write, chance: random.Random) -> Write:
    """Only some sectors of a write; in the others is nothing, or what the disk had there before."""
    data = bytearray(write.data)
    for start in range(0, len(data), _SECTOR):
        if chance.random() < 0.5:
            end = min(start + _SECTOR, len(data))
            kept = chance.randrange(start, end)
            lost = end - kept
            data[kept:end] = bytes(lost) if chance.random() < 0.5 else chance.randbytes(lost)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    return Write(write.node, write.offset, bytes(data))


def _describe(record: Recording, crash: Crash) -> str:
    harmed = ", ".join(
        f"{place} {type(record.events[place]).__name__}" for place in sorted(crash.lost | crash.torn)
    )
    return (
        f"(acknowledged {crash.acknowledged}, begun {crash.begun}; crash after event {crash.instant}, "
        f"{record.events[crash.instant]!r:.200}; lost or torn: {harmed})"
    )
