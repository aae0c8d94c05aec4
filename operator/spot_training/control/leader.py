"""Who leads: what the Lease says, when it was first seen to say so, and what follows from that. Pure.

The rules are those of client-go's leader election (``k8s.io/client-go/tools/leaderelection``), so that the Lease
reads like any other:

- Times of two machines are never compared. Whether the holder has let the Lease expire is judged by how long its
  content has not changed, in the observer's own monotonic clock, against the duration that the holder promised.
- The holder's own deadline is shorter than that and is counted from *before* the renewal was sent, while others
  count from when they have seen it: it has stopped before anybody else may begin, whatever the clocks say.
- A holder that leaves empties ``holderIdentity``: the next one need not wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spot_training.api.times import format_micro_time


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds; client-go's, but that it tries again sooner.

    With 8, 5 and 2 a leader that made ten thousand pods through a control plane on two processors lost the Lease nine
    times in five minutes, and began anew each time.
    """

    lease: int = 15
    """So long others wait for a holder that is not heard of."""
    deadline: float = 10.0
    """So long after the last renewal the holder still acts. The difference is for requests that are under way."""
    renew: float = 2.0
    """Between two renewals: one may fail and the next is still in time."""
    retry: float = 1.0
    """Between two looks of a standby, and before a renewal that has failed is tried again."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a Lease says; times as they are written there."""

    holder: str = ""
    duration: float = 0.0
    acquired: str = ""
    renewed: str = ""
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A Lease as it was seen; ``record`` is None where there is none."""

    record: Record | None
    since: float
    """When it was first seen to say this, in the observer's monotonic clock."""


@dataclass(frozen=True, slots=True)
class Acquire:
    """Nobody holds the Lease: write this process into it, over the version that was seen."""


@dataclass(frozen=True, slots=True)
class Renew:
    """It is held by this process: write the time of now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Another holds it: look again in so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """It was held by this process, and is no more: stop acting."""

    why: str


Decision = Acquire | Renew | Wait | Lost


def read_record(spec: Mapping[str, Any] | None) -> Record:
    """The record of a Lease's ``spec``; what is missing there is empty."""
    spec = spec or {}
    return Record(
        holder=str(spec.get("holderIdentity") or ""),
        duration=float(spec.get("leaseDurationSeconds") or 0),
        acquired=str(spec.get("acquireTime") or ""),
        renewed=str(spec.get("renewTime") or ""),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


def observe(before: View | None, record: Record | None, now: float) -> View:
    """The view after one more look: the same content keeps the time at which it was first seen."""
    if before is not None and before.record == record:
        return before
    return View(record, now)


def decide(me: str, view: View, renewed: float | None, now: float, timing: Timing) -> Decision:
    """What to do about the Lease.

    ``renewed``: when the last renewal that succeeded was sent, None in a standby. All times in this process's own
    monotonic clock, in seconds.
    """
    record = view.record
    if renewed is not None:
        if now >= renewed + timing.deadline:
            return Lost(f"the Lease could not be renewed for {timing.deadline:g} s")
        if record is not None and record.holder not in ("", me):
            return Lost(f"{record.holder} holds the Lease")
        return Renew()
    # Its own name in it is its own from before: of a container that was started again, or of a term that was lost
    # to a silent API server and that nobody else has taken.
    if record is None or record.holder in ("", me):
        return Acquire()
    left = view.since + record.duration - now
    return Acquire() if left <= 0 else Wait(min(timing.retry, left))


def holding(me: str, before: Record | None, now: float, timing: Timing) -> dict[str, Any]:
    """The ``spec`` with which this process takes or keeps the Lease; ``now`` in seconds since the epoch."""
    stamp = format_micro_time(now)
    kept = before is not None and before.holder == me
    return {
        "holderIdentity": me,
        "leaseDurationSeconds": timing.lease,
        "acquireTime": before.acquired if before is not None and kept and before.acquired else stamp,
        "renewTime": stamp,
        "leaseTransitions": 0 if before is None else before.transitions + (not kept),
    }


def released(before: Record, now: float) -> dict[str, Any]:
    """The ``spec`` with which the holder gives the Lease back."""
    stamp = format_micro_time(now)
    return {
        "holderIdentity": "",
        "leaseDurationSeconds": 1,
        "acquireTime": stamp,
        "renewTime": stamp,
        "leaseTransitions": before.transitions,
    }
