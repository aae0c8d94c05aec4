"""Fences: names of attempts that sort, as strings, in the order in which the attempts were made.

The operator names its attempts ``<job's creation time>-<job's UID>-<attempt>``, for instance
``20261121T043500Z-6f1c9d5e-...-000002``. Here only the order counts, and that a fence is a directory's name.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_NUMBER: Final = re.compile(r"\d+$")


def check_fence(fence: str) -> str:
    """The fence itself. Raises ValueError unless it can name a directory."""
    if not _SAFE.fullmatch(fence):
        raise ValueError(
            f"the fence {fence!r} cannot name a directory: use letters, digits, '.', '_' and '-'"
        )
    return fence


def attempt_number(fence: str) -> int:
    """The number at the end of a fence; 0 where there is none."""
    found = _NUMBER.search(fence)
    return int(found[0]) if found else 0


def local_fence(now: float, others: Iterable[str]) -> str:
    """A fence for a run outside the operator: after all `others`, and numbered on from the newest local one.

    It begins with the time, so that it sorts after the attempts of every job made before. Where it would not
    (the clock went back, or a start in the same second), it is made from the newest of the others instead.
    """
    newest = max(others, default="")
    number = attempt_number(newest) + 1 if "-local-" in newest else 1
    fence = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-local-{number:06d}"
    return fence if fence > newest else fence_after(newest)


def fence_after(fence: str) -> str:
    """The next fence of the same form: its number counted up, or a number added where it has none left."""
    found = _NUMBER.search(fence)
    if not found or set(found[0]) == {"9"}:
        return f"{fence}-000001"
    width = len(found[0])
    return f"{fence[: found.start()]}{int(found[0]) + 1:0{width}d}"
