"""What a notice asks for, by its kind: to empty the node, or only to keep new pods away and tell.

Pure. After a *reclaim* the machine is gone, so the node is always emptied. A *rebalance* may come to nothing, and a
*maintenance* is often days ahead: as configured, the node is tainted with ``PreferNoSchedule``, which stops nothing
that runs, or emptied at once, or nothing is done. A maintenance that is tainted for is emptied for when it is near.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from spot_training.node.notice import MAINTENANCE, REBALANCE, Active, earliest

NEAR_SECONDS: Final = 300.0
"""A maintenance that is no further ahead is acted upon like a reclamation: the longest notice of those."""


class Response(Enum):
    """What to do about a kind of notice that only warns."""

    TAINT = "taint"
    DRAIN = "drain"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about the two kinds that only warn."""

    rebalance: Response = Response.TAINT
    maintenance: Response = Response.TAINT

    def response(self, known: Active, now: float) -> Response:
        """What to do about one notice now, in seconds since the epoch; a kind that is not known is a reclaim."""
        if known.notice.kind == REBALANCE:
            return self.rebalance
        if known.notice.kind != MAINTENANCE:
            return Response.DRAIN
        near = known.deadline is None or known.deadline - now <= NEAR_SECONDS
        return Response.DRAIN if near and self.maintenance is Response.TAINT else self.maintenance

    def to_drain_for(self, active: tuple[Active, ...], now: float) -> Active | None:
        """The notice that the node is to be emptied for: the one with the earliest deadline."""
        return earliest(self._with(Response.DRAIN, active, now))

    def to_warn_of(self, active: tuple[Active, ...], now: float) -> Active | None:
        """The notice that the node is to be tainted for; none while it is to be emptied."""
        if self.to_drain_for(active, now):
            return None
        return earliest(self._with(Response.TAINT, active, now))

    def _with(self, response: Response, active: tuple[Active, ...], now: float) -> Iterator[Active]:
        return (known for known in active if self.response(known, now) is response)
