"""The queue: never two at once for a key, once more after a change meanwhile, again after an error."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress

import pytest

from spot_training.control import dispatch
from spot_training.control.dispatch import Dispatcher


class Work:
    """What the dispatcher is given: counts calls, can be held up, fails or asks to be called again."""

    def __init__(self) -> None:
        self.calls: list[Hashable] = []
        self.busy: Counter[Hashable] = Counter()
        self.overlapped = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: list[float | Exception | None] = []

    async def __call__(self, key: Hashable) -> float | None:
        self.calls.append(key)
        self.busy[key] += 1
        self.overlapped |= self.busy[key] > 1
        await asyncio.sleep(0)
        await self.gate.wait()
        self.busy[key] -= 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(10):
                while not condition():  # noqa: ASYNC110 - any condition, not an event
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"did not come; seen last: {self.calls}, busy {self.busy}") from None


@asynccontextmanager
async def running(work: Work, workers: int = 4) -> AsyncIterator[Dispatcher]:
    made = Dispatcher(work, workers)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_many_adds_are_one_look() -> None:
    work = Work()
    async with running(work) as queue:
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        assert len(queue) == 2
        await work.until(lambda: sorted(map(str, work.calls)) == ["a", "b"])


async def test_a_key_is_never_worked_on_twice_at_once_and_once_more_after_changes_meanwhile() -> None:
    work = Work()
    work.gate.clear()
    async with running(work) as queue:
        queue.add("a")
        await work.until(lambda: work.busy["a"] == 1)
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        await work.until(lambda: work.busy["b"] == 1)
        work.gate.set()
        await work.until(lambda: Counter(work.calls) == {"a": 2, "b": 1} and work.busy.total() == 0)
        queue.add("end")
        await work.until(lambda: "end" in work.calls)
    assert Counter(work.calls) == {"a": 2, "b": 1, "end": 1}
    assert not work.overlapped


async def test_what_can_wait_comes_after_what_cannot_but_for_one_in_so_many() -> None:
    work = Work()
    queue = Dispatcher(work, workers=1)
    for number in range(3):
        queue.add(f"later {number}", later=True)
    for number in range(10):
        queue.add(number)
    assert len(queue) == 13
    task = asyncio.create_task(queue.run())
    await work.until(lambda: len(work.calls) == 13)
    task.cancel()
    assert work.calls == [*range(7), "later 0", 7, 8, 9, "later 1", "later 2"]
    assert len(queue) == 0


async def test_what_can_wait_no_longer_does_not_and_what_cannot_does_not_begin_to() -> None:
    work = Work()
    queue = Dispatcher(work, workers=1)
    queue.add("a", later=True)
    queue.add("b")
    queue.add("b", later=True)
    queue.add("c")
    queue.add("a")
    task = asyncio.create_task(queue.run())
    await work.until(lambda: len(work.calls) == 3)
    task.cancel()
    assert work.calls == ["b", "c", "a"]


@pytest.mark.parametrize("later", [[True, False], [False, True], [True, True]])
async def test_what_changes_while_it_is_worked_on_waits_if_all_that_changed_can(later: list[bool]) -> None:
    work = Work()
    work.gate.clear()
    async with running(work, workers=1) as queue:
        queue.add("a")
        await work.until(lambda: work.busy["a"] == 1)
        for each in later:
            queue.add("a", later=each)
        queue.add("b", later=True)
        work.gate.set()
        await work.until(lambda: len(work.calls) == 3)
    assert work.calls == (["a", "b", "a"] if all(later) else ["a", "a", "b"])
    assert not work.overlapped


async def test_a_time_that_comes_while_a_key_can_wait_ends_its_wait() -> None:
    work = Work()
    work.gate.clear()
    async with running(work, workers=1) as queue:
        queue.add("busy")
        await work.until(lambda: work.busy["busy"] == 1)
        queue.add("a", later=True)
        queue.add_after("a", 0.0)
        await work.until(lambda: "a" in queue._soon)
        queue.add("b")
        work.gate.set()
        await work.until(lambda: len(work.calls) == 3)
    assert work.calls == ["busy", "a", "b"]


async def test_it_is_called_again_when_it_asked_to_be() -> None:
    work = Work()
    work.answers = [0.01, 0.0]
    async with running(work) as queue:
        queue.add("a")
        await work.until(lambda: work.calls == ["a"] * 3)


async def test_errors_are_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    work = Work()
    work.answers = [ValueError("no"), ValueError("no"), ValueError("no"), None, ValueError("no"), None]
    async with running(work) as queue:
        after = queue.add_after

        def quick(key: Hashable, seconds: float) -> None:
            delays.append(seconds)
            after(key, 0.0)

        monkeypatch.setattr(queue, "add_after", quick)
        queue.add("a")
        await work.until(lambda: len(work.calls) == 4)
        queue.add("a")
        await work.until(lambda: len(work.calls) == 6)
    first = dispatch.FIRST_RETRY_SECONDS
    assert delays == [first, first * 2, first * 4, first], "and a success begins anew"


async def test_in_that_time_at_the_latest() -> None:
    work = Work()
    async with running(work) as queue:
        queue.add_after("a", 3600.0)
        queue.add_after("a", 0.01)
        queue.add_after("a", 3600.0)
        await work.until(lambda: work.calls == ["a"])


async def test_a_call_that_asks_for_a_late_look_does_not_undo_a_nearer_one() -> None:
    work = Work()
    work.gate.clear()
    work.answers = [3600.0]
    async with running(work) as queue:
        queue.add("a")
        await work.until(lambda: work.busy["a"] == 1)
        queue.add_after("a", 0.01)
        work.gate.set()
        await work.until(lambda: work.calls == ["a", "a"])
    assert not work.overlapped


async def test_what_is_closed_takes_nothing_and_forgets_what_it_had() -> None:
    work = Work()
    queue = Dispatcher(work)
    queue.add("queued")
    queue.add_after("timed", 0.01)
    queue.close()
    queue.add("late")
    queue.add_after("later", 0.0)
    assert len(queue) == 0
    task = asyncio.create_task(queue.run())
    queue.open()
    # Longer than what was asked for before: were it remembered, it would come first.
    queue.add_after("after", 0.05)
    await work.until(lambda: work.calls == ["after"])
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_was_worked_on_when_it_was_closed_can_be_worked_on_again() -> None:
    work = Work()
    work.gate.clear()
    queue = Dispatcher(work)
    for _ in range(2):
        queue.open()
        task = asyncio.create_task(queue.run())
        queue.add("a")
        await work.until(lambda: work.busy["a"] == 1)
        queue.add("a")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        queue.close()
        work.busy.clear()
    assert work.calls == ["a", "a"], "and what was to follow on it is forgotten, too"


async def test_of_a_storm_each_key_gets_a_burst_and_then_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERVAL_SECONDS", 3600.0)
    work = Work()
    async with running(work) as queue:
        for number in range(dispatch.BURST):
            queue.add("a")
            await work.until(lambda number=number: len(work.calls) == number + 1)  # type: ignore[misc]
        queue.add("a")
        queue.add("b")
        await work.until(lambda: "b" in work.calls)
        assert Counter(work.calls) == {"a": dispatch.BURST, "b": 1}
        assert len(queue) == 0, "it waits for its time, not in the queue"


async def test_the_pace_of_keys_that_are_long_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERVAL_SECONDS", 1e-9)
    work = Work()
    async with running(work) as queue:
        for number in range(5000):
            queue.add(number)
        await work.until(lambda: len(work.calls) == 5000)
        assert len(queue._pace._due) <= 1001
