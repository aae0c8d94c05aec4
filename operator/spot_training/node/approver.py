"""The loop that tells the cloud to go ahead with an event, where that is wanted, once the node is drained."""

import logging
from typing import Final

from spot_training.node.announce import Announcer
from spot_training.node.logs import fields
from spot_training.node.metrics import Metrics
from spot_training.node.progress import Progress
from spot_training.node.situation import Settings, Situation, wait
from spot_training.node.sources import Approving

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 5.0
"""Before another try, where one has failed."""


class Approver:
    """Approves the notice that the node has been drained for, if its source says that it may be approved."""

    def __init__(
        self,
        settings: Settings,
        situation: Situation,
        source: Approving,
        metrics: Metrics,
        announcer: Announcer,
    ) -> None:
        self._settings, self._situation, self._source = settings, situation, source
        self._metrics, self._announcer = metrics, announcer
        self._changed = situation.listener()
        self._approved = ""

    async def run(self) -> None:
        """Approve whenever there is something to approve, for ever."""
        while True:
            notice = self._due()
            await wait(self._changed, None if not notice or await self._approve(notice) else AGAIN_SECONDS)

    def _due(self) -> str:
        """The id of the notice to approve now, if any."""
        situation, goal = self._situation, self._situation.goal
        if goal is None or not goal.notice.approvable or goal.notice.id == self._approved:
            return ""
        drained = situation.progress is Progress.DRAINED and situation.judged and not goal.held
        return goal.notice.id if drained and not self._settings.dry_run else ""

    async def _approve(self, notice: str) -> bool:
        """Whether it is approved now."""
        refusal = await self._source.approve(notice)
        self._metrics.approvals.labels("failed" if refusal else "approved").inc()
        if refusal:
            log.warning("the cloud takes no approval", extra=fields(notice=notice, why=refusal))
            return False
        self._approved = notice
        note = f"the node is drained: told {self._source.name} to go ahead"
        log.info(note, extra=fields(notice=notice))
        self._announcer.tell("Approved", note, notice=notice, now=self._situation.now())
        return True
