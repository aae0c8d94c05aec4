"""Work in another thread's loop: it goes on while this one stands still, and ends with whoever awaits it."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from spot_training.control.loops import run_apart, run_in

SECONDS = 20.0
"""So long a test waits for what comes at once."""


@pytest.fixture
async def other() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """A loop that runs in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join)
    loop.close()


async def test_what_runs_apart_goes_on_while_the_loop_stands_still() -> None:
    asked, answered = threading.Event(), threading.Event()

    async def answer() -> str:
        assert await asyncio.to_thread(asked.wait, SECONDS)
        answered.set()
        return threading.current_thread().name

    running = asyncio.create_task(run_apart("keeper", answer))
    await asyncio.sleep(0)
    asked.set()
    assert answered.wait(SECONDS), "nothing runs in this loop meanwhile"
    assert await running == "keeper"


async def test_it_runs_in_the_loop_that_is_named_and_returns_what_the_work_does(
    other: asyncio.AbstractEventLoop,
) -> None:
    async def where() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    assert await run_in(other, where) is other


async def test_it_raises_what_the_work_raises(other: asyncio.AbstractEventLoop) -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await run_in(other, fail)
    with pytest.raises(LookupError, match="gone"):
        await run_apart("keeper", fail)


async def test_cancelled_it_ends_only_when_the_work_has(other: asyncio.AbstractEventLoop) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    running = asyncio.create_task(run_in(other, work))
    assert await asyncio.to_thread(begun.wait, SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_cancelled_before_the_work_has_begun_it_ends_all_the_same(
    other: asyncio.AbstractEventLoop,
) -> None:
    go_on = threading.Event()
    other.call_soon_threadsafe(go_on.wait, SECONDS)
    running = asyncio.create_task(run_in(other, asyncio.Event().wait))
    await asyncio.sleep(0)
    running.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
