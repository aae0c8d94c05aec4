"""What the agent's loops share: the notices that stand, the answers so far, how far marking and draining are.

All of it can be found again after a restart, in the source's answers and in the Node's marks.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from spot_training.node.notice import Active
from spot_training.node.policy import Policy
from spot_training.node.progress import Progress


@dataclass(frozen=True)
class Settings:
    """How this agent is to work.

    ``pod``: its own namespace and name, where it runs as a pod. ``wait_for_volumes``: the node is drained only when
    its volumes are detached, too. ``cluster``: how messages name this cluster.
    """

    node: str
    poll_seconds: float = 1.0
    drain: bool = True
    dry_run: bool = False
    pod: tuple[str, str] | None = None
    policy: Policy = field(default_factory=Policy)
    wait_for_volumes: bool = True
    cluster: str = ""


@dataclass
class Situation:
    """The state that one agent's loops read and change, on one event loop.

    ``clock_offset`` gives the API server's clock minus this machine's. ``recalled``: the Node has been read, its
    marks are taken up and its API server's clock is known. ``attempted``: a patch with the present notice's marks
    has been tried, so that draining may begin. ``progress``: how far that is, and ``judged`` whether this
    run has found it so, or an earlier one. ``volumes``: how many the Node has
    attached, None before it was read. ``noticed``: the event loop's time when a notice came that the Node does
    not show yet.
    """

    clock_offset: Callable[[], float]
    policy: Policy
    active: tuple[Active, ...] = ()
    attempted: bool = False
    progress: Progress = Progress.DRAINING
    judged: bool = False
    volumes: int | None = None
    recalled: asyncio.Event = field(default_factory=asyncio.Event)
    noticed: float | None = None
    _listeners: list[asyncio.Event] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the epoch by the API server's clock."""
        return time.time() + self.clock_offset()

    @property
    def goal(self) -> Active | None:
        """The notice to empty the node for."""
        return self.policy.to_drain_for(self.active, self.now())

    @property
    def warning(self) -> Active | None:
        """The notice to taint the node for, where there is none to empty it for."""
        return self.policy.to_warn_of(self.active, self.now())

    def listener(self) -> asyncio.Event:
        """An event of the caller's own, set at every change."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    def tell(self, by: asyncio.Event | None = None) -> None:
        """Wake every loop, but the one that listens ``by`` this event: something has changed."""
        for event in self._listeners:
            if event is not by:
                event.set()


async def wait(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set or the time is over (None: for as long as it takes); leaves the event unset."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
