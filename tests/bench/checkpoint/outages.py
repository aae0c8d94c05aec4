"""Power failures below a real file system: a disk that loses, tears and reorders what it had not flushed.

The library saves to ext4 on a disk that notes all writes and flushes (`disk`). From these follow the disks that a power
failure may leave at any instant: all that was written before the last flush, and of what came after any part, down to
single sectors. ext4 mounts such a disk, replaying its journal, and the library loads from there.
"""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spot_training.train import Training
from tests.bench.checkpoint.crashes import Crashes
from tests.bench.checkpoint.disk import BlockWrite, DiskEvent, Flush, RecordedDisk, Said, recorded_disk
from tests.bench.checkpoint.subject import Pattern, be_quiet, open_training, unflushed

OPTIONS: Final = ("data=ordered", "data=writeback")
"""Of ext4: its default, and the mode in which it lets names be there before the content."""
_DISK: Final = 16 << 20
_SECTOR: Final = 512
_STATE: Final = 20_000
_LATER: Final = 99


def record_saves(directory: Path, options: str) -> list[DiskEvent]:
    """Format the disk, and save on it by two attempts, at once and in the background, removing what is old."""
    be_quiet()
    mounted = directory / "mounted"
    mounted.mkdir()
    with recorded_disk(directory, _DISK) as disk:
        _run("mkfs.ext4", "-q", "-b", "1024", "-J", "size=2", disk.device)
        with _mount(disk.device, mounted, options):
            disk.note("mounted", 0)
            for attempt, background in ((1, False), (1, True), (2, False), (2, True)):
                _save(mounted, attempt, disk, background=background)
        return disk.events()


def _save(mounted: Path, attempt: int, disk: RecordedDisk, *, background: bool) -> None:
    state = Pattern(_STATE)
    training: Training = open_training(mounted / "checkpoints", attempt, state, background=background)
    training.load()
    for _ in range(3):
        training.step += 1
        state.become(training.step)
        disk.note("begun", training.step)
        save = training.save()
        if background:
            state.become(1_000_000)
        save.wait()
        disk.note("acknowledged", training.step)
        state.become(training.step)
    training.close()


def try_outages(
    events: list[DiskEvent], directory: Path, options: str, chance: random.Random, count: int, result: Crashes
) -> None:
    """Let the power fail at `count` random instants while the program runs, and load from what is left of each."""
    mounted, image = directory / "after", directory / "image"
    mounted.mkdir()
    places = [place for place, event in enumerate(events) if isinstance(event, Said)]
    for instant in sorted(chance.randint(places[0], places[-1]) for _ in range(count)):
        image.write_bytes(_left(events[: instant + 1], chance))
        said = [event for event in events[: instant + 1] if isinstance(event, Said)]
        acknowledged, begun = (
            max((event.step for event in said if event.word == word), default=0)
            for word in ("acknowledged", "begun")
        )
        about = f"acknowledged {acknowledged}, begun {begun}; {options}, failure after event {instant}"
        result.states += 1
        try:
            with _mount(str(image), mounted, f"loop,{options}"), unflushed():
                _load(mounted, acknowledged, begun, about, result)
        except subprocess.CalledProcessError as error:
            result.not_loaded.append(f"{error} ({about})")
    result.instants += count


def _load(mounted: Path, acknowledged: int, begun: int, about: str, result: Crashes) -> None:
    state = Pattern(_STATE)
    try:
        training = open_training(mounted / "checkpoints", _LATER, state)
        step = training.load()
        training.close()
    except Exception as error:
        result.not_loaded.append(f"{error!r} ({about})")
        return
    if not state.is_of(step) or step > begun:
        result.torn_loads.append(f"step {step} ({about})")
    if step < acknowledged:
        result.older_than_acknowledged.append(f"step {step} ({about})")


def _left(events: list[DiskEvent], chance: random.Random) -> bytearray:
    """What is on the disk: of the writes after the last flush each may be there, or not, or some of its sectors."""
    disk = bytearray(_DISK)
    last_flush = max((place for place, event in enumerate(events) if isinstance(event, Flush)), default=0)
    likely = chance.random()  # from nearly all to nearly nothing
    for place, event in enumerate(events):
        if not isinstance(event, BlockWrite):
            continue
        torn = place > last_flush and chance.random() < 0.3
        if torn:
            for start in range(0, len(event.data), _SECTOR):
                if chance.random() < 0.5:
                    sector = event.data[start : start + _SECTOR]
                    disk[event.place + start : event.place + start + len(sector)] = sector
        elif place <= last_flush or chance.random() < likely:
            disk[event.place : event.place + len(event.data)] = event.data
    return disk


@contextlib.contextmanager
def _mount(device: str, place: Path, options: str) -> Iterator[None]:
    _run("mount", "-t", "ext4", "-o", options, device, str(place))
    try:
        yield
    finally:
        _run("umount", str(place))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
