"""Where notices come from: one small adapter for each cloud."""

from typing import Protocol, runtime_checkable

from spot_training.node.notice import Answer, Limits


class Source(Protocol):
    """One cloud's way to announce a reclamation."""

    @property
    def name(self) -> str:
        """The word for it in marks, metrics and notice ids, such as ``eci``."""

    @property
    def limits(self) -> Limits:
        """What its times can mean."""

    async def ask(self) -> Answer:
        """Ask once. Bounded in time and size; whatever goes wrong is ``Unknown`` with a reason, never an error."""


@runtime_checkable
class Approving(Source, Protocol):
    """A source whose cloud can be told that an event need not wait any longer."""

    async def approve(self, notice: str) -> str:
        """Let the event of this notice id happen now; returns why it was not approved, or an empty string.

        Bounded in time, and never an error, as ``ask`` is.
        """
