"""Telling the operator how a program is doing: by the termination message, also where it ends by an error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

from spot_training.train import report
from spot_training.train.problem import report_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from spot_training.train.report import TerminationLog

_OLD_AFTER: Final = 5.0
"""Seconds."""


class Teller:
    """Writes the termination message; from when it is made on, an error that nobody catches goes into it.

    Of the processes in one container the first writes it, any a failure. `facts` gives what is known, by field; what is
    empty of `optional` is left out.
    """

    def __init__(
        self,
        termination_log: TerminationLog,
        local_rank: int,
        facts: Callable[[], dict[str, Any]],
        optional: Callable[[], dict[str, Any]],
    ) -> None:
        self._termination_log = termination_log
        self._local_rank = local_rank
        self._facts = facts
        self._optional = optional
        self._told_at = time.monotonic()
        self._previous_hook = sys.excepthook
        sys.excepthook = self._on_uncaught

    @property
    def old(self) -> bool:
        """Whether it is time to tell again though nothing but the step has changed."""
        return time.monotonic() - self._told_at > _OLD_AFTER

    def tell(self, reason: str, message: str | None = None) -> None:
        """Write the message."""
        self._told_at = time.monotonic()
        if self._local_rank and reason not in report.FAILURES:
            return
        optional = {"message": message, **self._optional()}
        told = {name: value for name, value in optional.items() if value}
        self._termination_log.write({"reason": reason, **self._facts(), **told})

    def close(self) -> None:
        """Give the hook for errors back."""
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._previous_hook

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Tell how the program failed, then let the interpreter show it as ever. No SystemExit comes here."""
        failure = report_of(error, self._termination_log.read())
        if failure:
            self.tell(*failure)
        self._previous_hook(kind, error, trace)
