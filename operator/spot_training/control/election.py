"""Leading by a Lease: takes it, keeps it, gives it back; ``leader.py`` decides. Thin.

Two operators at once would do no harm that the design does not allow for, as every decision is a status write over
the version it was made from. But half of their work would be refused, and what needs no status write (creating the
pods of an attempt that another has ended meanwhile) is better kept to one. So there is one that acts, and:

- ``leading`` is a question to the clock, not a note that somebody must take back: a process that was frozen
  and goes on finds itself deposed before anything in it has run.
- :class:`LeaderClient` asks it before every write. What remains is the time between asking and sending.
- The Lease is renewed over a connection of its own, so that no queue of pods to be created holds it up, and in a loop
  and a thread of its own (:meth:`Election.run_apart`), so that no loop that has thousands of things to do does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import aiohttp

from spot_training.cluster.client import ApiError, Client, Connection, Json
from spot_training.control.leader import (
    Acquire,
    Decision,
    Lost,
    Renew,
    Timing,
    View,
    Wait,
    decide,
    holding,
    observe,
    read_record,
    released,
)
from spot_training.control.loops import run_apart, run_in

logger = logging.getLogger(__name__)

_NOT_FOUND, _CONFLICT = 404, 409
_RELEASE_SECONDS: Final = 2.0
# Goes on while a virtual machine is suspended, which CLOCK_MONOTONIC does not; not every system has it.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds of a clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


class NotLeadingError(Exception):
    """A write was not sent: this process does not lead any more."""


class LeaderClient(Client):
    """A client that sends no write unless ``leading()``. Raises :class:`NotLeadingError`."""

    def __init__(self, connection: Connection, leading: Callable[[], bool], **options: Any) -> None:
        super().__init__(connection, **options)
        self._leading = leading

    async def request(
        self,
        method: str,
        path: str,
        body: Json | list[Json] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """As :meth:`Client.request`."""
        if method != "GET" and not self._leading():
            raise NotLeadingError(f"{method} {path} was not sent: another operator may lead by now")
        return await super().request(method, path, body, query=query, content_type=content_type)


class Election:
    """A candidate for the Lease ``name`` in ``namespace``; ``me`` must be this process's alone."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        me: str,
        timing: Timing | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._client = client
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self._me = me
        self._timing = timing or Timing()
        self._clock = clock
        self._raw: Json | None = None
        self._known = False
        """Whether ``_raw`` is what the API server has, as far as is known."""
        self._view = View(None, clock())
        self._renewed: float | None = None
        self._wrote = False

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        # Asked from other threads, too: once it is read it stays.
        renewed = self._renewed
        return renewed is not None and self._clock() < renewed + self._timing.deadline

    async def run_apart(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """As :meth:`run`, in a thread of its own; ``lead()`` runs in the loop of the caller.

        A loop that takes long to come round does not lose the Lease so, and one that stands still does not either:
        kubelet ends that, for it does not answer its probe. What is under way as the Lease is lost ends when the loop
        comes to it; until then ``leading`` keeps it from writing.
        """
        here = asyncio.get_running_loop()

        async def stand() -> None:
            async with self._client:
                await self.run(lambda: run_in(here, lead))

        await run_apart("election", stand)

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Stand by; run ``lead()`` while the Lease is held; stand by again. When cancelled, give the Lease back.

        Raises what ``lead()`` raises.
        """
        logger.info("%s stands by", self._me)
        try:
            while True:
                await self._stand_by()
                await self._lead(lead)
        finally:
            await self._release()

    async def _stand_by(self) -> None:
        while True:
            decision = await self._look()
            if self.leading:
                return
            await asyncio.sleep(decision.seconds if isinstance(decision, Wait) else self._timing.retry)

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> None:
        logger.info("%s leads now", self._me)
        term = asyncio.ensure_future(lead())
        try:
            while not term.done():
                await asyncio.wait([term], timeout=self._until_next())
                decision = await self._look()
                if isinstance(decision, Lost):
                    logger.warning("%s leads no more: %s", self._me, decision.why)
                    break
        finally:
            self._renewed = None
            term.cancel()
            await asyncio.wait([term])
        if not term.cancelled():
            term.result()

    def _until_next(self) -> float:
        """Seconds until the next renewal: the deadline is never slept over."""
        age = self._clock() - (self._renewed or 0.0)
        wait = self._timing.renew - age if age < self._timing.renew else self._timing.retry
        return max(0.0, min(wait, self._timing.deadline - age))

    async def _look(self) -> Decision:
        """Read and write the Lease as far as is called for, in time; what follows from how it then is."""
        left = self._timing.deadline
        if self._renewed is not None:
            left -= self._clock() - self._renewed
        try:
            async with asyncio.timeout(left):
                # A holder knows what it wrote itself. What others wrote it hears from a conflict, and reads.
                if self._renewed is None or not self._known or not await self._write():
                    await self._read()
                    await self._write()
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._known = False
            logger.warning("no word about the Lease %s/%s: %r", self._namespace, self._name, error)
        return self._decision()

    def _decision(self) -> Decision:
        return decide(self._me, self._view, self._renewed, self._clock(), self._timing)

    async def _read(self) -> None:
        try:
            self._take(await self._client.get(f"{self._leases}/{self._name}"))
        except ApiError as error:
            if error.code != _NOT_FOUND:
                raise
            self._take(None)

    async def _write(self) -> bool:
        """Write it where it is this process's to write; False where it was not as it was thought to be."""
        if not isinstance(self._decision(), Acquire | Renew):
            return True
        before = None if self._raw is None else read_record(self._raw.get("spec"))
        sent = self._clock()
        self._wrote = True
        try:
            self._take(await self._put(holding(self._me, before, time.time(), self._timing)))
        except ApiError as error:
            # Not found, where one was to be created, is its namespace.
            if error.code != _CONFLICT and not (error.code == _NOT_FOUND and self._raw is not None):
                raise
            self._known = False
            return False
        self._renewed = sent
        return True

    async def _put(self, spec: Json) -> Json:
        if self._raw is None:
            kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            return await self._client.create(
                self._leases, {**kind, "metadata": {"name": self._name}, "spec": spec}
            )
        body = {**self._raw, "spec": {**(self._raw.get("spec") or {}), **spec}}
        return await self._client.request("PUT", f"{self._leases}/{self._name}", body)

    def _take(self, raw: Json | None) -> None:
        self._raw, self._known = raw, True
        record = None if raw is None else read_record(raw.get("spec"))
        self._view = observe(self._view, record, self._clock())

    async def _release(self) -> None:
        """Give the Lease back where it is this process's, so that the next one need not wait."""
        if not self._wrote:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._read()
                record = self._view.record
                if record is not None and record.holder == self._me:
                    await self._put(released(record, time.time()))
                    logger.info("%s has given the Lease back", self._me)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            logger.warning("the Lease %s/%s was not given back: %r", self._namespace, self._name, error)
