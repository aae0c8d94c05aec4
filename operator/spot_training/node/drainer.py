"""The loop that empties the node: asks :mod:`spot_training.node.drain` what is next, does it, until nothing is left."""

import asyncio
import logging
from typing import Final

from spot_training.api.times import format_time
from spot_training.cluster.client import Client
from spot_training.node.announce import Announcer
from spot_training.node.drain import Action, Asked, leaving, next_actions, refused
from spot_training.node.logs import fields
from spot_training.node.metrics import Metrics
from spot_training.node.notice import Active
from spot_training.node.podcache import PodCache
from spot_training.node.remove import Result, remove
from spot_training.node.situation import Settings, Situation, wait

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 0.1
"""How often the next actions are asked for while pods are left, if nothing changes meanwhile."""

SHOWN_SECONDS: Final = 5.0
"""An accepted request shows in the watch at once. Where it does not, the watch is dead: list and ask again."""

AT_ONCE: Final = 8
"""Requests under way together: each connection costs memory, and eight empty a node in a fraction of a second."""


UNHURRIED_SECONDS: Final = 86_400.0
"""Where there is no deadline: so much is always left, so that each pod gets its own grace and PDBs are respected."""


def due(goal: Active, now: float) -> float:
    """The deadline to drain by, in seconds since the epoch."""
    return now + UNHURRIED_SECONDS if goal.deadline is None else goal.deadline


class Drainer:
    """Drains the node while a notice stands. What it remembers only spares requests: losing it does no harm."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        situation: Situation,
        pods: PodCache,
        metrics: Metrics,
        announcer: Announcer,
    ) -> None:
        self._settings, self._client, self._situation = settings, client, situation
        self._pods, self._metrics, self._announcer = pods, metrics, announcer
        self._changed = pods.changed
        self._asked: dict[str, Asked] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._began = False

    async def run(self) -> None:
        """Drain whenever there is reason to, for ever."""
        try:
            while True:
                await wait(self._changed, self._step())
        finally:
            for task in self._busy.values():
                task.cancel()

    def _step(self) -> float | None:
        """Start what is next; returns how long to wait for a change (None: until there is one)."""
        situation, goal = self._situation, self._situation.goal
        if goal is None or goal.held or not situation.attempted:
            if self._began:
                self._began = False
                self._asked.clear()
                self._metrics.pods_left.set(0)
            return None
        if not self._began:
            self._began = True
            log.info(
                "draining the node",
                extra=fields(notice=goal.notice.id, deadline=goal.deadline and format_time(goal.deadline)),
            )
            self._pods.refresh()
        if not self._pods.synced:
            return None
        waiting = leaving(self._pods.all())
        self._metrics.pods_left.set(len(waiting))
        if not self._busy and situation.drained != (not waiting):
            self._report(goal, drained=not waiting)
        now = situation.now()
        for action in next_actions(waiting, self._asked, due(goal, now), now):
            if len(self._busy) >= AT_ONCE:
                break
            if action.pod.uid not in self._busy:
                self._busy[action.pod.uid] = asyncio.create_task(self._carry_out(action, goal, now))
        return STEP_SECONDS if waiting else None

    async def _carry_out(self, action: Action, goal: Active, now: float) -> None:
        uid = action.pod.uid
        try:
            if self._settings.dry_run:
                log.info(
                    "dry run: would %s the pod",
                    action.step.value,
                    extra=fields(
                        notice=goal.notice.id,
                        pod=f"{action.pod.namespace}/{action.pod.name}",
                        grace=action.grace,
                    ),
                )
                self._asked[uid] = Asked(float("inf"))
                return
            if uid in self._asked and not self._asked[uid].refusals:
                self._pods.refresh()
            result = await remove(self._client, action, goal.notice.id, now)
            self._metrics.evictions.labels(result.value).inc()
            self._asked[uid] = self._answered(action, goal, result)
        finally:
            del self._busy[uid]
            self._changed.set()

    def _answered(self, action: Action, goal: Active, result: Result) -> Asked:
        now, uid = self._situation.now(), action.pod.uid
        if result.accepted:
            return Asked(now + SHOWN_SECONDS)
        refusals = (self._asked[uid].refusals if uid in self._asked else 0) + 1
        return refused(action.pod, refusals, due(goal, now), now)

    def _report(self, goal: Active, drained: bool) -> None:
        situation = self._situation
        situation.drained = drained
        if drained:
            note, margin = "all pods have left", None
            if goal.deadline is not None:
                margin = round(goal.deadline - situation.now(), 1)
                self._metrics.deadline_margin.set(margin)
                note += f", {margin:.0f} s before the deadline"
            log.info("the node is drained", extra=fields(notice=goal.notice.id, marginSeconds=margin))
            if not self._settings.dry_run:
                self._announcer.tell("Drained", note, notice=goal.notice.id, now=situation.now())
        situation.tell(by=self._changed)
