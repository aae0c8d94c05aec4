"""Keeps the jobs that wait for a pool, decides for all of them together, and lets no two have the same GPUs.

A job whose plan gets as far as needing a pool asks here. While deciding is quick, that is done at once; where many jobs
wait or start, they are decided in passes, with rests in between, and are looked at again when something has changed
for them. What is known here is worth nothing: a new operator gets it from the jobs' plans, and only a status write
opens an attempt. From the moment a job is about to write until its answer is in the cache, its GPUs are set aside for
it here.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from spot_training.control.cache import Cache
from spot_training.control.policies.demand import Choice, Request, Waiting
from spot_training.control.policies.placement import place
from spot_training.control.world import Job, Reservation

Key = tuple[str, str]

REST: Final = 4.0
"""A pass is followed by a rest of so many times its processor time: deciding takes a fifth of it at most."""

AHEAD_SECONDS: Final = 0.05
"""So much of the rests can be put off: where few jobs wait, a dozen passes may follow on each other."""

MOST: Final = 512
"""Jobs that a pass gives a place: those after them would not be begun before the next."""

STOCK: Final = 128
"""While so many have a place and are to be begun, it takes a twentieth: nobody waits for it then."""

LONG_REST: Final = 20.0
LONGEST_REST_SECONDS: Final = 5.0

LAST: Final = -(1 << 31)
"""No pod has a lower priority (``metav1`` has it in 32 bits)."""

TELL_AGAIN_SECONDS: Final = 60.0
"""What is free changes all the time; a job that waits for the same reasons as before is told the numbers so often."""


class Placer:
    """The waiting jobs, and what was decided for them last."""

    def __init__(self, cache: Cache, now: Callable[[], float], look: Callable[[Key], None]) -> None:
        self._cache = cache
        self._now = now
        self._look = look
        self._waiting: dict[Key, Waiting] = {}
        self._choices: dict[Key, Choice] = {}
        self._told: dict[Key, tuple[Choice, float]] = {}
        self._opening: dict[Key, tuple[Reservation, ...]] = {}
        self._unseen: set[Key] = set()
        self._decided: tuple[int, float | None] = (-1, None)
        self._due: asyncio.TimerHandle | None = None
        self._rested_at = -math.inf

    def __len__(self) -> int:
        """Jobs that wait for a pool."""
        return len(self._waiting)

    def expect(self, keys: Iterable[Key]) -> None:
        """Decide nothing before these have been looked at once: they may come before those that ask first."""
        self._unseen.update(keys)

    def seen(self, key: Key) -> None:
        """The job has been looked at."""
        if self._unseen:
            self._unseen.discard(key)
            if not self._unseen and self._waiting:
                self.wake()

    def decide(self, job: Job, request: Request) -> Choice | None:
        """What is decided for the job, or None: it will be looked at again when it is."""
        known = self._waiting.get(job.key)
        if known is None or known.uid != job.uid or not known.request.same(request):
            self._waiting[job.key] = self._made(job, request)
            self._choices.pop(job.key, None)
            self._decided = (-1, None)
        if not self._holds():
            if self._unseen or self._rests_for() > 0:
                self.wake()
            else:
                self._pass()
        choice = self._choices.get(job.key)
        if choice is None:
            return None
        self._told[job.key] = choice, self._now()
        return choice

    def probe(self, job: Job, request: Request) -> Choice:
        """What would be decided for a job that does not wait: it comes after all that do."""
        last = replace(self._made(job, replace(request, priority=LAST)), created=math.inf)
        made = self._place((*self._waiting.values(), last))[job.key]
        return replace(made, request=request)

    def forget(self, key: Key) -> None:
        """The job does not wait for a pool, or is gone."""
        self._told.pop(key, None)
        self._choices.pop(key, None)
        if self._waiting.pop(key, None) is not None:
            # What it held is for the others now.
            self._decided = (-1, None)
            self.wake()

    def opening(self, job: Job, choice: Choice) -> None:
        """The job is about to write that it opens an attempt there: set its GPUs aside."""
        waiting = self._waiting.pop(job.key)
        avoid = frozenset() if choice.anywhere else choice.request.avoid
        self._choices.pop(job.key)
        self._told.pop(job.key, None)
        self._opening[job.key] = tuple(
            Reservation(
                pool,
                waiting.shape,
                0 if choice.request.queued else pods,
                choice.node,
                avoid,
                pool in choice.provisioned,
            )
            for pool, pods in choice.shares(waiting.pods).items()
        )

    def opened(self, job: Job) -> None:
        """The write is done, or refused: what it says is in the cache."""
        del self._opening[job.key]

    def rest(self) -> None:
        """Forget all that wait: somebody else leads."""
        for kept in (self._waiting, self._choices, self._told, self._unseen):
            kept.clear()
        self._decided = (-1, None)
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def wake(self) -> None:
        """Something has changed that may give room: decide soon."""
        if self._due is None and self._waiting and not self._unseen:
            self._due = asyncio.get_running_loop().call_later(max(0.0, self._rests_for()), self._run)

    def _run(self) -> None:
        self._due = None
        if not self._holds():
            self._pass()
        now = self._now()
        for key, choice in self._choices.items():
            told = self._told.get(key)
            stale = told is not None and choice is not told[0] and now - told[1] > TELL_AGAIN_SECONDS
            if told is None or told[0].kinds != choice.kinds or choice.pool is not None or stale:
                self._look(key)

    def _holds(self) -> bool:
        """Whether what was decided last would be decided again."""
        version, until = self._decided
        return version == self._cache.supply.version and (until is None or self._now() < until)

    def _pass(self) -> None:
        # Of the processor's time: on a busy machine the clock counts what others do meanwhile.
        started = time.thread_time()
        self._choices = self._place(tuple(self._waiting.values()), MOST)
        wakes = [each.wake_at for each in self._choices.values() if each.wake_at is not None]
        self._decided = self._cache.supply.version, min(wakes, default=None)
        took = time.thread_time() - started
        all_decided = len(self._choices) == len(self._waiting)
        self._rested_at = max(self._rested_at, asyncio.get_running_loop().time()) + self._rest_after(took)
        if not all_decided:
            self._decided = (-1, None)
            self.wake()

    def _rests_for(self) -> float:
        """Seconds until the next pass may come; 0 or less: now."""
        return self._rested_at - AHEAD_SECONDS - asyncio.get_running_loop().time()

    def _rest_after(self, took: float) -> float:
        """Seconds until the next pass may come, after one that took so long."""
        if sum(1 for each in self._choices.values() if each.pool is not None) < STOCK:
            return REST * took
        return max(REST * took, min(LONG_REST * took, LONGEST_REST_SECONDS))

    def _place(self, waiting: tuple[Waiting, ...], most: int | None = None) -> dict[Key, Choice]:
        opening = (each for made in self._opening.values() for each in made)
        reservations = (*self._cache.reservations(), *opening)
        return place(waiting, self._cache.supply, reservations, self._provisioning(), self._now(), most)

    def _made(self, job: Job, request: Request) -> Waiting:
        shape = self._cache.shape_of(job, request.volumes, request.together, request.ceiling)
        return Waiting(job.key, job.uid, job.created, request, shape)

    def _provisioning(self) -> Counter[str]:
        counted = self._cache.provisioning()
        counted.update(each.pool for made in self._opening.values() for each in made if each.awaited)
        return counted
