"""The webhook: each occasion is posted to one URL, tried again for a while, and in nobody's way."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from spot_training.node.logs import fields
from spot_training.node.message import Occasion, fill
from spot_training.node.metrics import Metrics
from spot_training.node.post import Posted, post

log = logging.getLogger(__name__)

TRIES: Final = 5
TRY_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.5
"""Before the second try; doubled before each further one."""

LONGEST_PAUSE_SECONDS: Final = 10.0
"""A server that asks for more patience than this is asked again all the same: the machine will be gone."""

PASSING: Final = (408, 425, 429)
"""The refusals that are worth another try, beside all from 500 on."""


class Webhook:
    """Posts messages to ``url``; ``body`` is from :func:`spot_training.node.message.parse_body`."""

    occasions = frozenset(Occasion)

    def __init__(self, url: str, body: Any, metrics: Metrics) -> None:
        self._url, self._body, self._metrics = url, body, metrics

    async def send(self, given: Mapping[str, str]) -> None:
        """Post one message, in at most ``TRIES`` tries."""
        body, posted = fill(self._body, given), Posted(0)
        for number in range(TRIES):
            if number:
                pause = posted.retry_after or PAUSE_SECONDS * 2.0 ** (number - 1)
                await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))
            posted = await post(self._url, body, TRY_SECONDS)
            if not _worth_another(posted):
                break
        result = "sent" if posted.accepted else "failed"
        self._metrics.webhook.labels(given["occasion"], result).inc()
        log.log(
            logging.INFO if posted.accepted else logging.WARNING,
            "webhook %s",
            result,
            extra=fields(
                notice=given["notice"], occasion=given["occasion"], tries=number + 1, why=posted.why
            ),
        )


def _worth_another(posted: Posted) -> bool:
    return posted.status == 0 or posted.status >= 500 or posted.status in PASSING
