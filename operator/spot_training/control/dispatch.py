"""Which jobs to look at, when: a queue of keys in which each stands at most once, and a clock.

A key that is being worked on and is added again is worked on once more afterwards, never at the same time. What
fails is tried again with a doubling delay.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0


class Dispatcher:
    """Calls ``work(key)`` for the keys that are added; what it returns is when to call it again, in seconds."""

    def __init__(self, work: Callable[[Hashable], Awaitable[float | None]], workers: int = 16) -> None:
        self._work = work
        self._workers = workers
        self._queue: asyncio.Queue[Hashable] = asyncio.Queue()
        self._waiting: set[Hashable] = set()
        self._busy: set[Hashable] = set()
        self._again: set[Hashable] = set()
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}
        self._failures: dict[Hashable, int] = {}

    def __len__(self) -> int:
        """Keys that wait to be worked on."""
        return len(self._waiting)

    def add(self, key: Hashable) -> None:
        """Look at the key soon."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._queue.put_nowait(key)

    def add_after(self, key: Hashable, seconds: float) -> None:
        """Look at the key in that time at the latest; many calls within it are one look."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if key in self._waiting or (timer is not None and timer.when() <= loop.time() + seconds):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def _due(self, key: Hashable) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._run_one())

    async def _run_one(self) -> None:
        while True:
            key = await self._queue.get()
            self._waiting.discard(key)
            self._busy.add(key)
            timer = self._timers.pop(key, None)
            if timer is not None:
                timer.cancel()
            try:
                delay = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
                logger.warning("%s: %r; again in %.1f s", key, error, delay, exc_info=failures == 1)
            finally:
                self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay is not None:
                self.add_after(key, max(0.0, delay))
