"""Disks that fail for a moment: a network file system whose server comes back, a path that is switched.

What failed for a moment is asked again for some seconds. What goes on failing is no proof of damage: the file may be
whole, and be read by the next attempt.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final, TypeVar

from spot_training.train.report import log

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PAUSES: Final = (0.1, 0.4, 1.5, 4.0)
"""Seconds before asking again."""
_MAY_PASS: Final = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
    }
)


def patiently(work: Callable[[], T]) -> T:
    """Do what reads a disk, and do it again where that fails as it may for a moment. Raises OSError in the end."""
    for pause in _PAUSES:
        try:
            return work()
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise
            log.warning("%s: trying again in %.1f s", error, pause, extra={"event": "read-again"})
        time.sleep(pause)
    return work()
