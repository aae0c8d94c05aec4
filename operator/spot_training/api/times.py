"""Times as Kubernetes writes them: RFC 3339, UTC. Everywhere else they are seconds since the epoch."""

from datetime import UTC, datetime
from typing import Final

_YEAR_10000: Final = 253_402_300_800


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; one without a zone, or before 1970, is refused.

    Raises ``ValueError`` for anything else.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    seconds = moment.timestamp()
    if not 0 <= seconds < _YEAR_10000:
        raise ValueError(f"{text!r} is not between the years 1970 and 9999")
    return seconds


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds, for annotations and status: ``2026-04-08T05:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_micro_time(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds, as Events and Leases want it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_second(seconds: float) -> str:
    """RFC 3339 in UTC with whole seconds, as ``metav1.Time`` wants it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
