"""The loop that empties the node: asks :mod:`spot_training.node.drain` what is next, does it, until nothing is left."""

import asyncio
import logging
from typing import Final

from spot_training.api.times import format_time
from spot_training.cluster.client import Client
from spot_training.node.announce import Announcer, lot
from spot_training.node.drain import Action, Asked, leaving, next_actions, refused
from spot_training.node.logs import fields
from spot_training.node.message import Message, Occasion
from spot_training.node.metrics import Metrics
from spot_training.node.notice import Active
from spot_training.node.podcache import PodCache
from spot_training.node.pods import Pod
from spot_training.node.progress import Progress, progress
from spot_training.node.remove import Result, remove
from spot_training.node.situation import Settings, Situation, wait

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 0.1
"""How often the next actions are asked for while pods are left, if nothing changes meanwhile."""

DETACHING_SECONDS: Final = 1.0
"""The same while only volumes are waited for, whose time may run out without a change."""

SHOWN_SECONDS: Final = 5.0
"""An accepted request shows in the watch at once. Where it does not, the watch is dead: list and ask again."""

AT_ONCE: Final = 8
"""Requests under way together: each connection costs memory, and eight empty a node in a fraction of a second."""

MOST_NAMED: Final = 10
"""Pods that an Event names; of more it gives the number."""

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
        self._lists = 0
        self._apart = lot()
        self._warned: set[str] = set()
        self._empty_since: float | None = None

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
                self._warned.clear()
                self._empty_since = None
                self._metrics.pods_left.set(0)
            return None
        if not self._began:
            self._began = True
            log.info(
                "draining the node",
                extra=fields(notice=goal.notice.id, deadline=goal.deadline and format_time(goal.deadline)),
            )
            self._lists = self._pods.lists
            # What the watch has told is acted upon now; whether it has told all is asked a moment later.
            asyncio.get_running_loop().call_later(self._apart, self._pods.refresh)
        if not self._pods.lists:
            return None
        waiting = leaving(self._pods.all())
        self._metrics.pods_left.set(len(waiting))
        now = situation.now()
        self._warn(goal, waiting, now)
        # That no pod is left is believed only of a list that was made since, as the watch may have been a dead one.
        if waiting or (not self._busy and self._pods.lists > self._lists):
            self._judge(goal, waiting, now)
        for action in next_actions(waiting, self._asked, due(goal, now), now):
            if len(self._busy) >= AT_ONCE:
                break
            if action.pod.uid not in self._busy:
                self._busy[action.pod.uid] = asyncio.create_task(self._carry_out(action, goal, now))
        if waiting:
            return STEP_SECONDS
        return DETACHING_SECONDS if situation.progress is Progress.DETACHING else None

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

    def _warn(self, goal: Active, waiting: list[Pod], now: float) -> None:
        """Name the pods whose local data is about to be lost, before they are told to go; each of them once."""
        losing = [
            pod for pod in waiting if pod.local_data and pod.kill_at is None and pod.uid not in self._warned
        ]
        if losing:
            self._warned |= {pod.uid for pod in losing}
            note = (
                f"what these pods keep in emptyDir volumes on this node is lost with them: {_names(losing)}"
            )
            log.warning(note, extra=fields(notice=goal.notice.id))
            self._announcer.tell(
                "LocalDataLost", note, notice=goal.notice.id, now=now, warning=True, at_once=True
            )

    def _judge(self, goal: Active, waiting: list[Pod], now: float) -> None:
        """Find out how far the drain is, and tell where that has changed."""
        situation = self._situation
        self._empty_since = None if waiting else self._empty_since or now
        volumes = situation.volumes if self._settings.wait_for_volumes else 0
        if volumes:
            # What stays with the node keeps its volumes.
            volumes = max(0, volumes - sum(pod.volumes for pod in self._pods.all() if pod.stays))
        reached = progress(
            situation.progress, len(waiting), volumes, goal.deadline, self._empty_since or now, now
        )
        before = situation.progress, situation.judged
        situation.progress, situation.judged = reached, True
        if before != (reached, True):
            situation.tell(by=self._changed)
        # What an earlier run has told is not told again.
        if reached is before[0]:
            return
        if reached is Progress.DRAINED:
            self._tell_drained(goal, volumes, now)
        elif reached is Progress.LATE:
            note = f"the deadline has passed and {len(waiting)} pods are left: {_names(waiting)}"
            log.warning(note, extra=fields(notice=goal.notice.id))
            self._tell("DeadlinePassed", Occasion.DEADLINE_PASSED, note, goal, len(waiting), now)
        elif reached is Progress.DETACHING:
            log.info("waiting for volumes", extra=fields(notice=goal.notice.id, volumes=volumes))

    def _tell_drained(self, goal: Active, volumes: int | None, now: float) -> None:
        note, margin = "all pods have left", None
        if goal.deadline is not None:
            margin = round(goal.deadline - now, 1)
            self._metrics.deadline_margin.set(margin)
            note += f", {abs(margin):.0f} s {'before' if margin >= 0 else 'after'} the deadline"
        if volumes:
            note += f"; {volumes} volumes are not detached"
        log.info("the node is drained", extra=fields(notice=goal.notice.id, marginSeconds=margin))
        self._tell("Drained", Occasion.DRAINED, note, goal, 0, now)

    def _tell(self, reason: str, occasion: Occasion, note: str, goal: Active, left: int, now: float) -> None:
        stated, late = goal.notice, occasion is Occasion.DEADLINE_PASSED
        self._announcer.tell(reason, note, notice=stated.id, now=now, warning=late)
        message = Message(occasion, note, stated.id, stated.kind, stated.source, goal.deadline, left)
        self._announcer.send(message, now)


def _names(pods: list[Pod]) -> str:
    """``ns/a, ns/b and 3 more``."""
    names = sorted(f"{pod.namespace}/{pod.name}" for pod in pods)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
