"""The agent of one node: asks the source, marks the Node, drains it. Each in a loop of its own.

Polling never waits for the API server and draining never waits for the source. Every loop compares what is with what
should be, so that an agent killed at any instant goes on where it was when it runs again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import aiohttp

from spot_training.api.times import format_time
from spot_training.cluster.client import ApiError, Client, core_path
from spot_training.node import notice
from spot_training.node.announce import Announcer, Outlet
from spot_training.node.approver import Approver
from spot_training.node.drainer import Drainer
from spot_training.node.health import Pulse
from spot_training.node.logs import fields
from spot_training.node.marker import Marker
from spot_training.node.metrics import Metrics
from spot_training.node.notice import Active, Answer, Nothing, Notices, Unknown
from spot_training.node.podcache import PodCache
from spot_training.node.progress import Progress
from spot_training.node.situation import Settings, Situation
from spot_training.node.sources import Approving, Source

log = logging.getLogger(__name__)

STALE_SECONDS: Final = 60.0
"""A socket that answered this agent once and refuses for so long since was made anew outside the mount."""

DEAD_SECONDS: Final = 600.0
"""One that never answered is most likely dead on the machine too, and a new pod is only worth a try now and then."""

FIRST_LOOK_SECONDS: Final = 2.0
"""So long is the first question put off until the Node was read: answers are judged by the API server's clock."""

RESTART_SECONDS: Final = 1.0
"""Pause before a loop that failed in a way nobody thought of begins again."""


class Agent:
    """Ties one source to one Node."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        source: Source,
        metrics: Metrics,
        outlets: Sequence[Outlet] = (),
    ) -> None:
        self._settings, self._client, self._source, self._metrics = settings, client, source, metrics
        self.situation = situation = Situation(lambda: client.clock_offset, settings.policy)
        self.pulse = Pulse(settings.poll_seconds)
        self._announcer = Announcer(settings, client, outlets)
        self._pods = PodCache(client, settings.node, situation.listener())
        self._marker = Marker(settings, client, situation, source.limits, metrics, self._announcer)
        self._drainer = Drainer(settings, client, situation, self._pods, metrics, self._announcer)
        self._approver = (
            Approver(settings, situation, source, metrics, self._announcer)
            if isinstance(source, Approving)
            else None
        )
        self._unconnectable_since: float | None = None
        self._answered_once = False
        self._last: Answer | None = None
        self._told: tuple[Active | None, Active | None] = (None, None)

    async def run(self) -> None:
        """Work until cancelled. No error ends it: a container that restarts beside a missing socket could make a
        directory in the socket's place, so that the guest agent cannot come back.
        """
        loops = [self._poll, self._marker.run]
        if self._settings.drain:
            loops += [self._pods.run, self._drainer.run]
        if self._approver:
            loops.append(self._approver.run)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(_for_ever(loop))
        finally:
            await self._announcer.flush()

    async def _poll(self) -> None:
        clock = asyncio.get_running_loop().time
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_SECONDS):
                await self.situation.recalled.wait()
        while True:
            began = clock()
            try:
                answer = await self._source.ask()
            except Exception as error:
                log.exception("the source adapter failed")
                answer = Unknown(f"{type(error).__name__}: {error}")
            self._take(answer)
            if isinstance(answer, Unknown) and answer.unconnectable:
                await self._heal(clock())
            else:
                self._unconnectable_since = None
            # Also after *unknown* at the usual pace: the next answer may be the notice.
            await asyncio.sleep(max(0.0, began + self._settings.poll_seconds - clock()))

    def _take(self, answer: Answer) -> None:
        """Fold one answer into the situation, and wake the other loops where it changes anything."""
        situation, before, goal = self.situation, self.situation.active, self.situation.goal
        self._count(answer)
        situation.active = notice.observe(before, answer, situation.now(), self._source.limits)
        known = {active.notice.id for active in before}
        for active in situation.active:
            if active.notice.id not in known:
                stated = active.notice
                self._metrics.notices.labels(stated.kind, stated.source).inc()
                log.warning(
                    "notice",
                    extra=fields(
                        notice=stated.id,
                        kind=stated.kind,
                        says=None if stated.says is None else format_time(stated.says),
                        deadline=None if active.deadline is None else format_time(active.deadline),
                    ),
                )
        for gone in known - {active.notice.id for active in situation.active}:
            log.info("the notice stands no more", extra=fields(notice=gone))
        if situation.goal is None:
            situation.attempted, situation.noticed = False, None
            situation.progress, situation.judged = Progress.DRAINING, False
        elif goal is None or goal.notice.id != situation.goal.notice.id:
            situation.noticed = asyncio.get_running_loop().time()
        # Also the time alone makes a goal of a warning.
        now_told = (situation.goal, situation.warning)
        if situation.active != before or now_told != self._told:
            self._told = now_told
            situation.tell()

    def _count(self, answer: Answer) -> None:
        unknown = answer.reason if isinstance(answer, Unknown) else None
        if isinstance(answer, Notices) and answer.missing:
            unknown = answer.missing
        result = {Nothing: "nothing", Notices: "notice", Unknown: "unknown"}[type(answer)]
        self._metrics.polls.labels(self._source.name, result).inc()
        self.pulse.beat(unknown)
        if unknown is None:
            self._metrics.good_poll()
            self._answered_once = True
        if type(answer) is not type(self._last):
            log.info("the source answers: %s", result, extra=fields(source=self._source.name, why=unknown))
        self._last = answer

    async def _heal(self, now: float) -> None:
        """Replace this pod where its socket has become a dead one.

        A guest agent that restarts makes a new socket, and the mounted one stays the old. A new pod mounts the new
        one, and kubelet checks before that it is a socket, which a restarted container alone would not get.
        Never while a notice stands: what is left to do then needs no source.
        """
        if self._unconnectable_since is None:
            self._unconnectable_since = now
        if self._settings.pod is None or self.situation.active or self._settings.dry_run:
            return
        if now - self._unconnectable_since < (STALE_SECONDS if self._answered_once else DEAD_SECONDS):
            return
        self._unconnectable_since = now
        namespace, name = self._settings.pod
        log.warning("nobody answers at the socket: replacing this pod", extra=fields(pod=name))
        try:
            await self._client.delete(core_path(namespace, "pods", name))
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("cannot replace this pod", extra=fields(pod=name, error=str(error)))


async def _for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop again whenever it fails unforeseen."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("a loop failed and begins again")
        await asyncio.sleep(RESTART_SECONDS)
