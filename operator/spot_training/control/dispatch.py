"""Which jobs to look at, when: a queue of keys in which each stands at most once, and a clock.

What can wait stands in a line of its own, of which little is taken while others wait: where thousands of jobs are to be
begun, all of them are begun before it is said of each how far it is.

A key that is being worked on and is added again is worked on once more afterwards, never at the same time. What
fails is tried again with a doubling delay. A storm of events about one key is a look now and then: what it looks at
is the newest state, whatever it has missed.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0
BURST, INTERVAL_SECONDS = 20, 0.1
"""So many looks at a key follow on each other, the others this far apart: a gang of four that is reclaimed and made
again is some dozen events, one of a thousand is thousands.
"""

LATER: Final = 8
"""Of so many keys that are taken, one is of those that can wait, while others do not: nobody waits for ever."""


class _Pace:
    """When a key may be looked at again (the generic cell rate algorithm: one time a key)."""

    def __init__(self) -> None:
        self._due: dict[Hashable, float] = {}
        self._room = 1000

    def delay(self, key: Hashable, now: float) -> float:
        """Seconds until the key's next look; 0 or less: now."""
        return self._due.get(key, now) - now - (BURST - 1) * INTERVAL_SECONDS

    def note(self, key: Hashable, now: float) -> None:
        """The key is looked at now."""
        self._due[key] = max(now, self._due.get(key, now)) + INTERVAL_SECONDS
        if len(self._due) > self._room:
            # A time that is past says no more than none.
            self._due = {key: due for key, due in self._due.items() if due > now}
            self._room = max(1000, 2 * len(self._due))


class Dispatcher:
    """Calls ``work(key)`` for the keys that are added; what it returns is when to call it again, in seconds."""

    def __init__(self, work: Callable[[Hashable], Awaitable[float | None]], workers: int = 128) -> None:
        self._work = work
        self._closed = False
        self._workers = workers
        self._soon: OrderedDict[Hashable, None] = OrderedDict()
        self._later: OrderedDict[Hashable, None] = OrderedDict()
        self._there = asyncio.Semaphore(0)
        """As many as there are in both."""
        self._taken = 0
        self._busy: set[Hashable] = set()
        self._again: dict[Hashable, bool] = {}
        """Of those that are being worked on, which are to be once more; whether that can wait."""
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}
        self._failures: dict[Hashable, int] = {}
        self._pace = _Pace()

    def __len__(self) -> int:
        """Keys that wait to be worked on."""
        return len(self._soon) + len(self._later)

    def close(self) -> None:
        """Forget all keys, and take none until :meth:`open`. For when nothing runs: it works on nothing then."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._there = asyncio.Semaphore(0)
        for kept in (self._soon, self._later, self._again, self._timers, self._failures):
            kept.clear()

    def open(self) -> None:
        """Take keys again; whoever opens it adds all that there are."""
        self._closed = False

    def add(self, key: Hashable, *, later: bool = False) -> None:
        """Look at the key soon; ``later``: once most of those that are to be looked at soon have been."""
        if self._closed or key in self._soon:
            return
        if key in self._busy:
            self._again[key] = later and self._again.get(key, True)
        elif key in self._later:
            if not later:
                del self._later[key]
                self._soon[key] = None
        else:
            delay = self._pace.delay(key, asyncio.get_running_loop().time())
            if delay > 0:
                self.add_after(key, delay)
                return
            (self._later if later else self._soon)[key] = None
            self._there.release()

    def add_after(self, key: Hashable, seconds: float) -> None:
        """Look at the key in that time at the latest; many calls within it are one look."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if self._closed or key in self._soon or (timer is not None and timer.when() <= loop.time() + seconds):
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
            await self._there.acquire()
            key = self._next()
            self._busy.add(key)
            self._pace.note(key, asyncio.get_running_loop().time())
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
            again = self._again.pop(key, None)
            if again is not None:
                self.add(key, later=again)
            if delay is not None:
                self.add_after(key, max(0.0, delay))

    def _next(self) -> Hashable:
        self._taken += 1
        first = not self._later or (self._soon and self._taken % LATER)
        key, _ = (self._soon if first else self._later).popitem(last=False)
        return key
