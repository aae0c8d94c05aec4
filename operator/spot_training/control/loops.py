"""Work in the event loop of another thread, awaited as if it were in this one.

A loop that has thousands of things to do takes seconds to come round, and each thing that waits for an answer comes
round several times. What has a deadline of its own is therefore in a thread of its own: there it waits for the
interpreter's lock at most, which is a few milliseconds but where garbage is collected.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` in the loop, which runs in another thread; returns and raises what it does.

    Cancelled, it has the work cancelled there, and ends when that has ended.
    """
    here = asyncio.get_running_loop()
    ended: asyncio.Future[None] = here.create_future()
    begun: list[asyncio.Task[T]] = []

    def begin() -> None:
        begun.append(loop.create_task(work()))
        begun[0].add_done_callback(lambda _: here.call_soon_threadsafe(ended.set_result, None))

    loop.call_soon_threadsafe(begin)
    while not ended.done():
        try:
            # Unlike the future itself, this can be cancelled without cancelling that.
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            # It has begun by then: what is called in a loop is called in order.
            loop.call_soon_threadsafe(lambda: begun[0].cancel())
    return begun[0].result()


async def run_apart(name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As :func:`run_in`, in a thread of that name with a loop of its own, which are there for as long."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def stay() -> None:
        over = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), over))
        await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(stay(),), name=name)
    thread.start()
    loop, over = ready.result()
    try:
        return await run_in(loop, work)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
