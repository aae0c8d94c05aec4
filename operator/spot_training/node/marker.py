"""The loop that makes the Node say what the situation is: marks while a notice stands, none when it does not."""

import asyncio
import logging
from typing import Final

import aiohttp

from spot_training.api.times import format_time
from spot_training.cluster.client import JSON_PATCH, STRATEGIC_PATCH, ApiError, Client, Json, node_path
from spot_training.node import marks, notice
from spot_training.node.announce import Announcer, afterwards
from spot_training.node.drain import backoff
from spot_training.node.logs import fields
from spot_training.node.marks import Marks
from spot_training.node.message import Message, Occasion
from spot_training.node.metrics import Metrics
from spot_training.node.notice import MAINTENANCE, REBALANCE, RECLAIM, Active, Limits, Notice
from spot_training.node.progress import Progress, attached
from spot_training.node.situation import Settings, Situation, wait

log = logging.getLogger(__name__)

RECHECK_SECONDS: Final = 5.0
"""While a notice stands: others write whole Node objects and lose taints in doing so."""

WARNED_RECHECK_SECONDS: Final = 60.0
"""The same for a notice that only warns, which may stand for weeks on many nodes."""

DETACHING_RECHECK_SECONDS: Final = 1.0
"""While only volumes are waited for: the Node's status tells of them."""

QUICK_CONFLICTS: Final = 5
"""So many conflicts in a row are answered at once with a fresh look; it is the cordon itself that causes them."""


class Marker:
    """Compares the Node with the situation and patches the difference, until it succeeds."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        situation: Situation,
        limits: Limits,
        metrics: Metrics,
        announcer: Announcer,
    ) -> None:
        self._settings, self._client, self._situation = settings, client, situation
        self._limits, self._metrics, self._announcer = limits, metrics, announcer
        self._changed = situation.listener()
        self._borne: Marks | None = None
        self._sent: Marks | None = None
        # The conditions wait like the Events do: by then most drains need one write for them and not two.
        self._apart = afterwards()
        self._shown_from = 0.0

    async def run(self) -> None:
        """Keep the Node's marks right, for ever."""
        failures = 0
        while True:
            goal = self._situation.goal
            pause: float | None
            try:
                await self._pass()
                failures, pause = 0, self._recheck()
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                failures += 1
                quick = QUICK_CONFLICTS if isinstance(error, ApiError) and error.code == 409 else 0
                pause = backoff(failures - quick) if failures > quick else 0.0
                name = goal.notice.id if goal else None
                log.warning(
                    "cannot mark the node", extra=fields(notice=name, error=str(error), failures=failures)
                )
                self._send(self._wanted())
            if goal is not None and not self._situation.attempted:
                # Marked or not: pods do not wait for an API server that refuses the marks.
                self._situation.attempted = True
                self._situation.tell()
            if pause is None or pause > 0:
                await wait(self._changed, pause)
            else:
                await asyncio.sleep(0)

    async def _pass(self) -> None:
        """One look at the Node, at most one patch of it and one of its status."""
        situation = self._situation
        self._changed.clear()
        path = node_path(self._settings.node)
        node = await self._client.get(path)
        if not situation.recalled.is_set():
            self._recall(node)
        self._look(node)
        goal, wanted = situation.goal, self._wanted()
        patch = marks.apply(node, wanted, situation.now()) if wanted else marks.undo(node)
        if patch and not self._settings.dry_run:
            before, node = marks.read(node), await self._client.patch(path, patch, JSON_PATCH)
            self._patched(before, wanted)
        elif patch and not situation.attempted:
            name = wanted and wanted.notice_id
            log.info("dry run: would patch the node", extra=fields(notice=name, patch=patch))
        if goal is not None and not situation.attempted:
            situation.attempted = True
            situation.tell(by=self._changed)
        self._send(wanted)
        if wanted is None or wanted.warns:
            conditions: tuple[marks.Condition, ...] = marks.withdrawn(node)
        else:
            conditions = marks.draining(wanted, situation.progress) if self._settings.drain else ()
        body = marks.condition_patch(node, conditions, situation.now())
        # What is withdrawn is said at once: nobody looks again for it.
        shown = goal is None or self._until_shown() <= 0
        if body and shown and not self._settings.dry_run:
            await self._client.patch(node_path(self._settings.node, "status"), body, STRATEGIC_PATCH)

    def _wanted(self) -> Marks | None:
        """The marks that the Node should bear now."""
        goal, warning = self._situation.goal, self._situation.warning
        return _marks(goal, False) if goal else _marks(warning, True) if warning else None

    def _recheck(self) -> float | None:
        """How long to wait for a change before the next look; None: until there is one."""
        if self._situation.goal is None:
            return WARNED_RECHECK_SECONDS if self._situation.warning else None
        if (left := self._until_shown()) > 0:
            return left
        detaching = self._situation.progress is Progress.DETACHING
        return DETACHING_RECHECK_SECONDS if detaching else RECHECK_SECONDS

    def _until_shown(self) -> float:
        return self._shown_from - asyncio.get_running_loop().time()

    def _look(self, node: Json) -> None:
        """Take from the Node what the other loops and the next pass need."""
        situation, volumes = self._situation, attached(node)
        self._borne = marks.read(node)
        if volumes != situation.volumes:
            situation.volumes = volumes
            situation.tell(by=self._changed)

    def _recall(self, node: Json) -> None:
        """Take up what an earlier run of this agent left on the Node."""
        situation = self._situation
        situation.recalled.set()
        found = marks.read(node)
        if found is None:
            return
        known = Notice(found.notice_id, found.kind, found.source, found.deadline)
        situation.active = notice.recall(
            situation.active, known, found.noticed_at, situation.now(), self._limits
        )
        situation.progress = marks.progress(node, found)
        log.info("found the marks of a notice on the node", extra=fields(notice=known.id))
        situation.tell()

    def _patched(self, before: Marks | None, after: Marks | None) -> None:
        """Log, count and announce what has just been stored."""
        situation = self._situation
        if after is None:
            gone = before or Marks("unnamed", RECLAIM, "unnamed", None, None)
            log.info("took the marks off the node", extra=fields(notice=gone.notice_id))
            note = "no reclamation is announced any more"
            self._announcer.tell("NoticeWithdrawn", note, notice=gone.notice_id, now=situation.now())
            message = _message(Occasion.WITHDRAWN, note, gone)
            self._announcer.send(message, situation.now())
            return
        name, due = after.notice_id, None if after.deadline is None else format_time(after.deadline)
        log.info("marked the node", extra=fields(notice=name, deadline=due, warns=after.warns))
        if situation.noticed is not None and not after.warns:
            self._metrics.cordon_seconds.observe(asyncio.get_running_loop().time() - situation.noticed)
            situation.noticed = None
            self._shown_from = asyncio.get_running_loop().time() + self._apart
        if not _alike(before, after):
            reason = "SpotWarning" if after.warns else "SpotReclaim"
            self._announcer.tell(reason, _note(after), notice=name, now=situation.now(), warning=True)

    def _send(self, wanted: Marks | None) -> None:
        """Send word of a notice out of the cluster, once.

        Marking has been tried by now and delayed by nothing; whether it succeeded does not matter: the API server may
        be what is in trouble. A Node that bore these marks already tells that an earlier run has sent it.
        """
        if _alike(wanted, self._sent):
            return
        self._sent = wanted
        if wanted is not None and not _alike(wanted, self._borne):
            occasion = Occasion.WARNING if wanted.warns else Occasion.NOTICE
            self._announcer.send(_message(occasion, _note(wanted), wanted), self._situation.now())


def _alike(one: Marks | None, other: Marks | None) -> bool:
    """Whether both tell people the same: one notice, and whether it only warns."""
    if one is None or other is None:
        return one is other
    return (one.notice_id, one.warns) == (other.notice_id, other.warns)


def _note(said: Marks) -> str:
    when = f" at {format_time(said.deadline)}" if said.deadline is not None else ""
    if said.kind in (REBALANCE, MAINTENANCE):
        return f"the cloud announces a {said.kind} of this node{when}"
    return f"this node is taken away{when}"


def _message(occasion: Occasion, note: str, said: Marks) -> Message:
    return Message(occasion, note, said.notice_id, said.kind, said.source, said.deadline)


def _marks(known: Active, warns: bool) -> Marks:
    stated = known.notice
    return Marks(stated.id, stated.kind, stated.source, known.deadline, known.first_seen, warns)
