"""Saves in the background: training goes on, what is told is on the disk, and no rank is left behind."""

import errno
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from spot_training.train import CheckpointError, PeerLostError, Preempted, Training, checkpoint, files
from spot_training.train.directory import Keep
from spot_training.train.signals import Told
from spot_training.train.store import Place, Store
from tests.unit.train.programs import Surroundings, Weights, fence

T = TypeVar("T")
SECONDS = 60.0
"""How long a test waits for what must happen before it fails."""


class Disk:
    """The real disk, which can be told to hold back what a thread wants to have on it, or to refuse it."""

    def __init__(self) -> None:
        self.held: set[str] = set()  # the names of the threads that have to wait
        self.refusing = False
        self.waiting = threading.Event()
        self._changed = threading.Condition()
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        with self._changed:
            if threading.current_thread().name in self.held:
                self.waiting.set()
                name = threading.current_thread().name
                assert self._changed.wait_for(lambda: name not in self.held, SECONDS), "held for good"
        if self.refusing and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)

    def release(self) -> None:
        with self._changed:
            self.held.clear()
            self.waiting.clear()
            self._changed.notify_all()


SAVER = "spot-training-save"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(os, "fsync", made.fsync)
    yield made
    made.release()


def _save_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == SAVER]


def _step_until(training: Training, happened: Callable[[], bool]) -> None:
    """Take steps, each of which waits for what the saving thread does, until it has happened."""
    for _ in range(10):
        training.step_done()
        if happened():
            return
        for thread in _save_threads():
            thread.join(SECONDS)
    raise AssertionError(f"not after ten steps, at step {training.step}")


def test_training_goes_on_and_only_what_is_on_the_disk_is_told(
    surroundings: Surroundings, disk: Disk
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights, background=True)
    training.load()
    disk.held.add(SAVER)
    weights.drawn = [1.0]
    training.step_done()
    save = training.save()
    assert disk.waiting.wait(SECONDS)
    weights.drawn.append(2.0)
    training.step_done()
    training.step_done()
    assert surroundings.steps(1) == []
    assert surroundings.report()["checkpointStep"] is None
    disk.release()
    assert save.wait() > 0
    assert surroundings.steps(1) == [1]
    report = surroundings.report()
    assert (report["step"], report["checkpointStep"]) == (3, 1)
    assert isinstance(report["stallSeconds"], float)
    loaded = Weights()
    assert surroundings.open(2, loaded).load() == 1
    assert loaded.drawn == [1.0], "as it was at its step"


def test_a_save_that_nobody_waits_for_is_told_at_a_later_step(surroundings: Surroundings) -> None:
    training = surroundings.open(1, Weights(), background=True, save_every_steps=5)
    training.load()
    training.step = 4
    _step_until(training, lambda: surroundings.report()["checkpointStep"] == 5)
    assert surroundings.steps(1) == [5]


def test_one_is_under_way_and_the_next_waits_for_it(surroundings: Surroundings, disk: Disk) -> None:
    weights = Weights()
    training = surroundings.open(1, weights, background=True)
    training.load()
    disk.held.add(SAVER)
    training.step_done()
    first = training.save()
    assert disk.waiting.wait(SECONDS)
    threading.Timer(0.2, disk.release).start()
    training.step_done()
    second = training.save()
    assert surroundings.steps(1)[:1] == [1], "on the disk before the second was begun"
    first.wait()
    second.wait()
    assert surroundings.steps(1) == [1, 2]


def test_told_to_stop_it_waits_for_the_save_under_way_and_saves_what_came_after(
    surroundings: Surroundings, disk: Disk
) -> None:
    weights = Weights()
    training = surroundings.open(1, weights, background=True)
    training.load()
    disk.held.add(SAVER)
    training.step_done()
    training.save()
    assert disk.waiting.wait(SECONDS)
    weights.drawn = [2.0]
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Timer(0.1, disk.release).start()
    with pytest.raises(Preempted):
        training.step_done()
    assert surroundings.steps(1) == [1, 2]
    report = surroundings.report()
    assert (report["reason"], report["step"], report["checkpointStep"]) == ("Preempted", 2, 2)
    assert _save_threads() == []


def test_told_to_stop_at_the_step_of_the_save_under_way_it_only_waits(
    surroundings: Surroundings, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    training = surroundings.open(1, Weights(), background=True)
    training.load()
    training.step = 7
    disk.held.add(SAVER)
    training.save()
    assert disk.waiting.wait(SECONDS)
    threading.Timer(0.1, disk.release).start()
    with pytest.raises(Preempted):
        training.stop()
    assert "stopping: step 7 is saved" in caplog.text
    assert surroundings.report()["checkpointStep"] == 7


@pytest.mark.parametrize("stop", [True, False])
def test_the_last_save_of_a_program_is_waited_for(surroundings: Surroundings, stop: bool) -> None:
    weights = Weights()
    training = surroundings.open(1, weights, background=True, total_steps=3, save_every_steps=1)
    random.seed(7)
    if stop:
        with pytest.raises(Preempted):
            for _ in training.steps():
                weights.drawn.append(random.random())
                training.stop()
    else:
        for _ in training.steps():
            weights.drawn.append(random.random())
    reason, step = ("Preempted", 0) if stop else ("Completed", 3)
    report = surroundings.report()
    assert (report["reason"], report["checkpointStep"]) == (reason, step)
    loaded = Weights()
    assert surroundings.open(2, loaded).load() == step
    assert loaded.drawn == weights.drawn


def test_a_disk_that_refuses_is_told_at_a_later_step_and_training_goes_on(
    surroundings: Surroundings, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    training = surroundings.open(1, Weights(), background=True)
    training.load()
    training.step_done()
    training.save().wait()
    disk.refusing = True
    training.step_done()
    save = training.save()
    _step_until(training, lambda: "message" in surroundings.report())
    assert "No space left on device" in surroundings.report()["message"]
    assert surroundings.report()["checkpointStep"] == 1
    assert "could not save step 2" in caplog.text
    with pytest.raises(CheckpointError, match=r"could not save step 2: .*No space left on device"):
        save.wait()
    assert not surroundings.path(1, 2).exists(), "a full disk has its room again"
    disk.refusing = False
    training.save().wait()
    assert "message" not in surroundings.report()


def test_an_error_in_the_programs_own_part_comes_up_at_the_next_step(surroundings: Surroundings) -> None:
    broken = False

    def get() -> dict[str, Any]:
        if broken:
            raise LookupError("the sampler has no state")
        return {}

    surroundings.attempt(1)
    training = Training({"sampler": (get, lambda _: None)}, background=True)
    training.load()
    broken = True
    save = training.save()
    with pytest.raises(LookupError, match="the sampler has no state"):
        _step_until(training, lambda: False)
    with pytest.raises(CheckpointError, match="broken off by an error"):
        save.wait()
    assert surroundings.steps(1) == []


class Meeting:
    """Where the ranks of one program meet that are threads of this process; one that has left is a lost peer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rounds: dict[int, dict[int, Any]] = {}
        self._spoken = [0] * size
        self._changed = threading.Condition()
        self._left = False

    def exchange(self, rank: int, value: T) -> list[T]:
        with self._changed:
            said = self._rounds.setdefault(self._spoken[rank], {})
            self._spoken[rank] += 1
            said[rank] = value
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: len(said) == self.size or self._left, SECONDS), "alone"
            if len(said) < self.size:
                raise PeerLostError("a rank has left")
            return [said[each] for each in range(self.size)]

    def leave(self) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()


class ThreadRanks:
    """A rank that is a thread. Only that thread may speak: another's words would cross the program's."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting = meeting
        self._thread = threading.current_thread()
        self.rank = rank
        self.size = meeting.size

    def _exchange(self, value: T) -> list[T]:
        assert threading.current_thread() is self._thread, "ranks speak only where the program calls"
        return self._meeting.exchange(self.rank, value)

    def largest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(each) for each in zip(*self._exchange(values), strict=True))

    def gather(self, value: T) -> list[T]:
        return self._exchange(value)

    def from_first(self, value: T) -> T:
        return self._exchange(value)[0]

    def part(self) -> None:
        self._exchange(None)


def _run_ranks(size: int, program: Callable[[ThreadRanks], T]) -> list[T | Exception]:
    """Run the program on each rank; what it returned or raised, by rank."""
    meeting, ends = Meeting(size), dict[int, T | Exception]()

    def run(rank: int) -> None:
        try:
            ends[rank] = program(ThreadRanks(meeting, rank))
        except Exception as error:
            ends[rank] = error
            meeting.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(ends) == size, f"only {sorted(ends)} came to an end: {ends}"
    return [ends[rank] for rank in range(size)]


def _store(root: Path, ranks: ThreadRanks, get: Callable[[], Any], attempt: int = 1) -> Store:
    place = Place(root, fence(attempt), attempt, None)
    return Store(place, ranks, {"model": (get, lambda _: None)}, {"own": (get, lambda _: None)}, Keep(2))


def _go_on_until_saved(store: Store, ranks: ThreadRanks, step: int) -> tuple[Any, int]:
    """Take steps with one exchange each, as a training program does, until the save has ended."""
    begun, steps = store.begin_save(step, {}), 0
    while True:
        steps += 1
        [busy] = ranks.largest((int(begun.busy),))
        if not busy and (ended := begun.advance()):
            return ended[0], steps


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_commit_when_the_slowest_has_written(tmp_path: Path, disk: Disk, size: int) -> None:
    seen: list[bool] = []

    def program(ranks: ThreadRanks) -> Any:
        store = _store(tmp_path, ranks, lambda: {"rank": 0})
        store.load()
        manifest = tmp_path / fence(1) / "step-000000000005" / "manifest.json"
        with ExitStack() as late:
            if ranks.rank == 0:
                disk.held.add(SAVER)  # every rank's thread waits; rank 0 lets them go after some steps
                late.callback(disk.release)
            ranks.part()
            begun = store.begin_save(5, {})
            for _ in range(20):
                [busy] = ranks.largest((int(begun.busy),))
                assert busy, "no rank's files are on the disk"
            seen.append(manifest.exists())
        while True:
            [busy] = ranks.largest((int(begun.busy),))
            if not busy and (ended := begun.advance()):
                return ended[0].problem, manifest.exists()

    assert _run_ranks(size, program) == [(None, True)] * size
    assert seen == [False] * size
    assert sorted(path.name for path in (tmp_path / fence(1) / "step-000000000005").iterdir()) == [
        "manifest.json", *(f"rank-{rank:05d}.json" for rank in range(size)), "state.json"
    ]  # fmt: skip


def test_ranks_that_all_wait_finish_at_once(tmp_path: Path) -> None:
    def program(ranks: ThreadRanks) -> Any:
        store = _store(tmp_path, ranks, dict)
        store.load()
        for step in range(1, 6):
            assert store.begin_save(step, {}).finish().problem is None
        return _store(tmp_path, ranks, dict, attempt=2).load()

    for loaded in _run_ranks(3, program):
        assert not isinstance(loaded, Exception), loaded
        assert loaded.step == 5


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ours", [True, False])
def test_a_volume_that_is_full_for_one_rank_is_full_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """But not where a part of the program's own writes elsewhere, and finds no room there."""
    write = files.write_durably

    def refusing(path: Path, content: Any) -> files.Written:
        if ours and path.name.startswith("rank-00001"):
            raise _no_room()
        return write(path, content)

    def overflow() -> dict[str, Any]:
        raise _no_room()

    def program(ranks: ThreadRanks) -> Any:
        store = _store(tmp_path, ranks, dict)
        store.load()
        if ranks.rank == 1 and not ours:
            store._per_rank = {"own": (overflow, lambda _: None)}
        refused, _ = _go_on_until_saved(store, ranks, 5)
        return refused.problem

    monkeypatch.setattr(files, "write_durably", refusing)
    for end in _run_ranks(2, program):
        assert not isinstance(end, Exception), end
        assert (end.full, "rank 1 cannot write" in end.words) == (ours, True), end


def test_a_rank_whose_disk_refuses_spoils_the_save_for_all_and_ends_none(tmp_path: Path) -> None:
    def program(ranks: ThreadRanks) -> Any:
        store = _store(tmp_path, ranks, dict)
        store.load()
        blocked = tmp_path / fence(1) / "step-000000000005" / "rank-00001.json"

        def block() -> dict[str, Any]:
            blocked.mkdir()
            return {}

        if ranks.rank == 1:
            store._per_rank = {"own": (block, lambda _: None)}
        refused, _ = _go_on_until_saved(store, ranks, 5)
        store._per_rank = {"own": (dict, lambda _: None)}
        then, _ = _go_on_until_saved(store, ranks, 6)
        return refused.problem, then.problem

    for end in _run_ranks(2, program):
        assert not isinstance(end, Exception), end
        assert "rank 1 cannot write" in end[0].words
        assert not end[0].full
        assert end[1] is None
    assert not (tmp_path / fence(1) / "step-000000000005").exists()


def test_a_rank_that_cannot_take_its_state_ends_the_others_as_their_lost_peer(tmp_path: Path) -> None:
    def program(ranks: ThreadRanks) -> Any:
        store = _store(tmp_path, ranks, dict)
        store.load()

        def fail() -> dict[str, Any]:
            raise LookupError("the sampler has no state")

        if ranks.rank == 1:
            store._per_rank = {"own": (fail, lambda _: None)}
        return _go_on_until_saved(store, ranks, 5)

    first, second = _run_ranks(2, program)
    assert isinstance(first, PeerLostError), first
    assert "rank 1 could not take its state: the sampler has no state" in str(first)
    assert isinstance(second, LookupError), second
    assert list(tmp_path.glob("*/step-*/manifest.json")) == []


def test_ranks_of_which_one_waits_for_a_disk_that_hangs_leave_together(
    surroundings: Surroundings, disk: Disk
) -> None:
    surroundings.monkeypatch.setenv("SPOT_GRACE_SECONDS", "3")
    surroundings.attempt(1)

    def program(ranks: ThreadRanks) -> str:
        surroundings.monkeypatch.setattr(checkpoint, "find_ranks", lambda _: _ranks[threading.get_ident()])
        _ranks[threading.get_ident()] = ranks
        ranks.part()
        training = Training({"weights": Weights()}, background=True)
        training.load()
        ranks.part()
        training.step = 5
        if ranks.rank == 0:
            disk.held.add(SAVER)
        ranks.part()
        training.save()
        assert disk.waiting.wait(SECONDS)
        if ranks.rank == 1:
            training._signals.told = Told("SIGTERM", time.monotonic())
        try:
            training.step_done()
        except Preempted:
            return "left"
        return "went on"

    _ranks: dict[int, ThreadRanks] = {}
    assert _run_ranks(2, program) == ["left", "left"]
    assert surroundings.report()["reason"] == "Preempted"
