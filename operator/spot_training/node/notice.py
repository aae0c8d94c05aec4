"""What a source can answer, and what its answers add up to: which notices are active, until when.

Pure: answers and a clock in, notices out. A source answers one of three things, and *unknown* is never *nothing*:
a metadata service that restarts must not take back a notice, and a broken one must not make one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

RECLAIM: Final = "reclaim"
"""The kind of a notice after which the machine is taken away."""

REBALANCE: Final = "rebalance"
"""The machine is more likely than others to be taken; it names no time and may come to nothing."""

MAINTENANCE: Final = "maintenance"
"""The machine stops or restarts at a time that is often days ahead."""

FAR_SECONDS: Final = 90 * 86_400.0
"""A maintenance further ahead than this cannot be meant."""

ANSWERS_TO_WITHDRAW: Final = 3
"""One 404 from a guest agent that restarts proves nothing; three in a row do."""

OVER_SECONDS: Final = 600.0
"""A notice whose deadline passed so long ago, and that no answer lists any more, did not come true."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a source can mean, from its documentation; both in seconds.

    ``minimum``: the least time its documentation promises between notice and loss. ``horizon``: a time further
    ahead than this cannot be meant.
    """

    minimum: float
    horizon: float


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice as its source states it.

    ``id`` stays the same however often the notice is read. ``says`` is the time that the source names, in seconds
    since the epoch by the cloud's clock, or None where it names none. ``minimum``: the seconds that are documented
    for just this notice, where they are not the source's. ``single``: the source can tell of one notice of this kind
    only, so one with another id is the same, restated: it keeps the first id, and its deadline only tightens.
    ``approvable``: the cloud may be told to go ahead before its time, which is wanted and concerns no other machine.
    """

    id: str
    kind: str
    source: str
    says: float | None
    minimum: float | None = None
    single: bool = False
    approvable: bool = False

    def repeats(self, known: "Notice") -> bool:
        """Whether this is another statement of a notice that is known."""
        if self.single and (self.kind, self.source) == (known.kind, known.source):
            return True
        return self.id == known.id


@dataclass(frozen=True, slots=True)
class Nothing:
    """The source answered: nothing is scheduled."""


@dataclass(frozen=True, slots=True)
class Notices:
    """The source answered: all of these are scheduled.

    ``missing``: why there may be more, where only some of a source's questions were answered; empty: these are all.
    """

    notices: tuple[Notice, ...]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The source did not answer, or not in its own words. ``unconnectable``: nobody listens where it should be."""

    reason: str
    unconnectable: bool = False


Answer = Nothing | Notices | Unknown


@dataclass(frozen=True, slots=True)
class Active:
    """A notice that stands.

    ``first_seen`` and ``deadline`` are seconds since the epoch by the API server's clock; a rebalance has no
    deadline. ``absent`` counts the
    explicit answers in a row that did not list it. ``held``: found on the Node by an agent that has just
    started and has not asked the source yet, or was told "nothing" by it: nothing more is removed for its sake
    until the source confirms it or cannot be asked.
    """

    notice: Notice
    first_seen: float
    deadline: float | None
    absent: int = 0
    held: bool = False


def settle(notice: Notice, first_seen: float, limits: Limits) -> float | None:
    """The deadline to act by, from what the source says; None for a kind that has none.

    No time: first seen + the documented minimum. Further ahead than the source can mean (a wrong time zone, a
    wrong clock): the horizon, because that something is scheduled is still the best that is known. Longer ago than the
    horizon: no deadline of a machine that still runs, so as if there were no time. So is a maintenance whose time
    has come before it was seen: its time is the earliest possible one.
    """
    if notice.kind == REBALANCE:
        return None
    far = notice.kind == MAINTENANCE
    horizon = FAR_SECONDS if far else limits.horizon
    if notice.says is None or notice.says < first_seen - (0.0 if far else horizon):
        return first_seen + (limits.minimum if notice.minimum is None else notice.minimum)
    return min(notice.says, first_seen + horizon)


def observe(active: tuple[Active, ...], answer: Answer, now: float, limits: Limits) -> tuple[Active, ...]:
    """The active notices after one more answer of the source, ``now`` by the API server's clock."""
    if isinstance(answer, Unknown):
        # The row of explicit answers is broken, and a drain that was found half done goes on without the source.
        return tuple(replace(known, absent=0, held=False) for known in active if not _over(known, now))
    listed = (
        list({notice.id: notice for notice in answer.notices}.values()) if isinstance(answer, Notices) else []
    )
    complete = not (isinstance(answer, Notices) and answer.missing)
    result = []
    for known in active:
        stated = next((notice for notice in listed if notice.repeats(known.notice)), None)
        if stated is not None:
            listed.remove(stated)
            result.append(_restated(known, stated, now, limits))
        elif not complete and not _over(known, now):
            result.append(replace(known, absent=0))
        elif complete and known.absent + 1 < ANSWERS_TO_WITHDRAW and not _over(known, now):
            result.append(replace(known, absent=known.absent + 1))
    for notice in listed:
        result.append(Active(notice, now, settle(notice, now, limits)))
    return tuple(result)


def recall(
    active: tuple[Active, ...], notice: Notice, first_seen: float | None, now: float, limits: Limits
) -> tuple[Active, ...]:
    """The active notices with the one that the Node's marks tell of, so that a restarted agent goes on.

    Where the source has already repeated the notice, the marks only say its name and since when it stands.
    """
    since = now if first_seen is None else min(first_seen, now)
    for known in active:
        if known.notice.repeats(notice):
            deadline = settle(known.notice, since, limits)
            named = replace(known.notice, id=notice.id)
            older = replace(known, notice=named, first_seen=since, deadline=deadline)
            return tuple(older if other is known else other for other in active)
    return (*active, Active(notice, since, settle(notice, since, limits), held=True))


def earliest(active: Iterable[Active]) -> Active | None:
    """The one with the earliest deadline; none comes after all."""
    return min(active, key=lambda known: (_deadline(known), known.notice.id), default=None)


def _restated(known: Active, stated: Notice, now: float, limits: Limits) -> Active:
    """A notice that is listed again, perhaps with another time, or without one because it has begun."""
    deadline = known.deadline
    if stated.says is None and known.notice.says is not None and deadline is not None:
        deadline = min(deadline, settle(stated, now, limits) or deadline)
    elif stated.says != known.notice.says:
        deadline = settle(stated, known.first_seen, limits)
        if stated.single and deadline is not None and known.deadline is not None:
            deadline = min(deadline, known.deadline)
    return Active(replace(stated, id=known.notice.id), known.first_seen, deadline)


def _over(known: Active, now: float) -> bool:
    return now > _deadline(known) + OVER_SECONDS


def _deadline(known: Active) -> float:
    return math.inf if known.deadline is None else known.deadline
