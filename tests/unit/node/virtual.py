"""Time that stands still while anything happens and jumps to the next timer when nothing does.

Both clocks that an agent reads are it: the event loop's, and the system's. So minutes pass in no time, in the same
steps on a slow machine as on a quick one.
"""

import asyncio
import selectors
from typing import Final

QUIET_SECONDS: Final = 0.001
"""So long nothing must come over any connection, in real time, before nothing counts as happening."""


class _Jumping(selectors.DefaultSelector):
    """Passes the time that it is asked to wait, instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; where nothing is, the time has passed."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(None)
        ready = super().select(QUIET_SECONDS)
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._jumping.now
