"""What all ranks know of being told to stop: they learn it in one exchange, so that none of them leaves alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from spot_training.train.ranks import Ranks
    from spot_training.train.signals import StopSignals

_SECONDS_TO_LEAVE: Final = 2.0
_SHARE_TO_LEAVE: Final = 0.1


class Agreement:
    """Whether the program is to stop, and how much of its grace is left; `grace` None: it has no bound, in seconds.

    `stopping` and `left` are as of the last exchange, and alike on all ranks, so decisions may rest on them. `told`
    is what this rank knows by itself.
    """

    def __init__(self, ranks: Ranks, signals: StopSignals, grace: float | None) -> None:
        self.stopping = False
        self.left: float | None = None
        self._ranks = ranks
        self._signals = signals
        self._grace = grace
        self._over_at: float | None = None

    @property
    def told(self) -> bool:
        """Whether this rank has been told to stop, or has heard of another that was."""
        return self.stopping or self._signals.told is not None

    @property
    def over(self) -> bool:
        """Whether the grace has come to where waiting for a disk must end, so that the program can still leave."""
        if not self.stopping or self.left is None or self._grace is None:
            return False
        return self.left < min(_SECONDS_TO_LEAVE, self._grace * _SHARE_TO_LEAVE)

    def exchange(self, *, due: bool, busy: bool) -> tuple[bool, bool]:
        """One all-reduce, by all ranks at the same point: whether for rank 0 it is `due`, and whether any is `busy`."""
        now, told = time.monotonic(), self._signals.told
        since = 1 + int(1000 * (now - told.at)) if told else 0  # milliseconds, 0: not told
        asked = (since, int(due and self._ranks.rank == 0), int(busy))
        since, by_first, by_any = self._ranks.largest(asked)
        self.stopping = self.stopping or since > 0
        if since and self._grace is not None:
            self.left = self._grace - since / 1000
            self._over_at = now + self.left
        return bool(by_first), bool(by_any)

    def seconds_now(self) -> float | None:
        """What is left of the grace at this instant, by this rank's clock, for what it does alone; None: no bound."""
        return None if self._over_at is None else max(0.0, self._over_at - time.monotonic())

    def in_words(self, what: str) -> str:
        """A line for the log: why the program stops, `what` it does about that, and the time that it has."""
        why = f"told to stop ({self._signals.told.name})" if self._signals.told else "stopping"
        return f"{why}: {what}" + ("" if self.left is None else f", {max(0.0, self.left):.0f} s left")
