"""How often a pool's nodes are taken: counts, a decayed rate, and the breaker. Pure.

All of it is kept in ``SpotPool.status.interruptions`` and brought forward from there, so that an operator that starts
anew counts nothing twice and forgets nothing. An interruption is a notice on a node, known by the node's UID and
the notice's id for as long as the mark stands and a day more, for one that is withdrawn may come again; or a machine
that went without one: an attempt was lost with it, or, where the pool says that this proves it, its Node has gone.

rate = (E + 0.2) / (N + 10), per node and hour, where E are the interruptions and N the hours that nodes were there,
both decayed with a half-life of 6 hours: E(t) = E(t₀) · 2^(-(t - t₀)/6 h), plus one for each interruption, and
N(t) = N(t₀) · 2^(-(t - t₀)/6 h) + nodes · ∫ 2^(-s/6 h) ds. A pool of which nothing is known is taken for one of 2 % an
hour, with the weight of 10 node-hours (a gamma prior).
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from spot_training.api.pool import InterruptionCount, Interruptions, PastMarks, SpotPoolStatus
from spot_training.api.times import format_second, parse_time
from spot_training.control.world import Node, Pool

HALF_LIFE_HOURS: Final = 6.0
PRIOR_EVENTS: Final = 0.2
PRIOR_NODE_HOURS: Final = 10.0

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MAX_MARKS: Final = 5000

VOLUNTARY: Final = frozenset({"ClusterAutoscaler", "Karpenter"})
"""Whose marks say that a node is not needed, or dearer than another: nothing about how often a pool's are taken."""


LOST: Final = "lost"
"""What a machine that went without a notice has in the place of a notice."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of interruptions now.

    ``marks``: by identity, when it was noticed; ``moved``: marks among these that another pool has counted, which the
    node was in; ``lost``: by key of the machine, when it went without a notice; ``silent``: machines whose kubelets
    do not answer; ``machines``: those that are to be missed when they go.
    """

    marks: Mapping[str, float | None] = field(default_factory=dict)
    moved: Set[str] = frozenset()
    lost: Mapping[str, float] = field(default_factory=dict)
    silent: Set[str] = frozenset()
    machines: Set[str] = frozenset()


def machine_key(uid: str) -> str:
    """Eight digits for a node, by its UID: short enough to remember thousands, and any two that are one are counted
    as one at the worst.
    """
    return f"{zlib.crc32(uid.encode()):08x}"


def mark_of(node: Node) -> str | None:
    """The identity of the notice that stands on the node, where it is an interruption."""
    notice = node.notice
    if notice is None or notice.source in VOLUNTARY:
        return None
    return machine_key(node.uid) + machine_key(notice.id)


def marks_of(nodes: Iterable[Node]) -> dict[str, float | None]:
    """The interruptions that stand on these nodes: an identity of each, and when it was noticed."""
    found: dict[str, float | None] = {}
    for node in nodes:
        mark, notice = mark_of(node), node.notice
        if mark is not None and notice is not None:
            found[mark] = notice.noticed_at if notice.noticed_at is not None else notice.marked_at
    return found


def remembered(known: Interruptions) -> set[str]:
    """The interruptions that have been counted and may be seen again."""
    return {*known.marks, *(mark for past in known.past for mark in past.marks)}


def machines_of(known: Interruptions) -> set[str]:
    """Keys of the machines that were there at the last look, and were to be missed."""
    return {known.machines[place : place + 8] for place in range(0, len(known.machines), 8)}


def bring_forward(
    known: Interruptions, nodes_before: int, signs: Signs, nodes_now: int, now: float
) -> Interruptions:
    """What is known, as of now: new interruptions counted once, old counts merged and dropped, the rate decayed.

    The same object where nothing that people or decisions see has changed.
    """
    new = _uncounted(remembered(known), signs, now)
    events, node_hours = _decayed(known, nodes_before, now)
    minutes = {parse_time(each.at): each.count for each in known.recent}
    for at in new.values():
        minute = math.floor(min(now, at if at is not None else now) / MINUTE) * MINUTE
        minutes[minute] = minutes.get(minute, 0) + 1
    recent = _merged(minutes, now)
    made = Interruptions(
        last_hour=_since(recent, now, HOUR, MINUTE),
        last_day=_since(recent, now, DAY, HOUR),
        rate_per_node_hour=_shown(_rate(events + len(new), node_hours)),
        recent=[InterruptionCount(at=format_second(at), count=count) for at, count in sorted(recent.items())],
        marks=sorted(signs.marks)[:MAX_MARKS],
        past=_past(known, signs, new.keys() - signs.marks.keys(), now),
        machines="".join(sorted(signs.machines)[:MAX_MARKS]),
        events=f"{events + len(new):.6f}",
        node_hours=f"{node_hours:.6f}",
        as_of=format_second(now),
    )
    same = {"events", "node_hours", "as_of", "recent"}
    if (
        known.as_of is not None
        and nodes_before == nodes_now
        and made.model_dump(exclude=same) == known.model_dump(exclude=same)
    ):
        return known
    return made


def _uncounted(counted: Set[str], signs: Signs, now: float) -> dict[str, float | None]:
    """What is to be counted now, and when it was. A machine that went without a notice counts as one that has had one:
    what its cloud marks it with afterwards is the same interruption, and so is its loss after a notice.
    """
    gone = {mark[:8] for mark in counted if mark.endswith(LOST)}
    new = {
        mark: at
        for mark, at in signs.marks.items()
        if mark not in counted | signs.moved and mark[:8] not in gone & signs.silent
    }
    known = {mark[:8] for mark in (*counted, *signs.marks)}
    lost = {key + LOST: at for key, at in signs.lost.items() if key not in known and at > now - DAY}
    return new | lost


def _past(known: Interruptions, signs: Signs, lost: Set[str], now: float) -> list[PastMarks]:
    """What was counted within a day and does not stand now, by the hour in which it was found to be so."""
    hour = math.floor(now / HOUR) * HOUR
    found = {parse_time(each.at): set(each.marks) - signs.marks.keys() for each in known.past}
    found.setdefault(hour, set()).update({*known.marks} - signs.marks.keys(), lost)
    room, made = MAX_MARKS, []
    for at, marks in sorted(found.items(), reverse=True):
        if marks and at + HOUR > now - DAY and room > 0:
            made.append(PastMarks(at=format_second(at), marks=sorted(marks)[:room]))
            room -= len(marks)
    return made[::-1]


def next_change(known: Interruptions, now: float) -> float:
    """In how many seconds time alone changes what is shown: a count leaves the hour or the day, the rate decays."""
    ends = [parse_time(each.at) + MINUTE + HOUR for each in known.recent]
    ends += [parse_time(each.at) + HOUR + DAY for each in known.recent]
    return min([end - now for end in ends if end > now] + [900.0])


def interruption_rate(status: SpotPoolStatus, now: float) -> float:
    """Interruptions per node and hour, decayed, as of now."""
    known = status.interruptions
    events, node_hours = _decayed(known, status.nodes.total, now)
    return _rate(events, node_hours)


def breaker_until(pool: Pool, now: float) -> float | None:
    """Until when nothing new is placed in the pool if nothing more happens, or None where the breaker is closed."""
    limit = pool.spec.max_interruptions_per_hour
    if limit is None:
        return None
    recent = sorted((parse_time(each.at), each.count) for each in pool.status.interruptions.recent)
    inside = [(at, count) for at, count in recent if at + MINUTE > now - HOUR]
    left = sum(count for _, count in inside)
    until = None
    for at, count in inside:
        if left <= limit:
            break
        left -= count
        until = at + MINUTE + HOUR
    return until


def _decayed(known: Interruptions, nodes: int, now: float) -> tuple[float, float]:
    """Interruptions and node-hours, decayed from when they were written to now; ``nodes`` were there meanwhile."""
    if known.as_of is None:
        return 0.0, 0.0
    hours = max(0.0, now - parse_time(known.as_of)) / HOUR
    factor = 2.0 ** (-hours / HALF_LIFE_HOURS)
    span = HALF_LIFE_HOURS / math.log(2) * (1 - factor)
    return float(known.events) * factor, float(known.node_hours) * factor + nodes * span


def _rate(events: float, node_hours: float) -> float:
    return (events + PRIOR_EVENTS) / (node_hours + PRIOR_NODE_HOURS)


def _shown(rate: float) -> str:
    """Two significant digits: what is shown is written, and need not be written each second."""
    digits = max(0, min(6, 1 - math.floor(math.log10(rate)))) if rate > 0 else 0
    return f"{rate:.{digits}f}"


def _merged(minutes: dict[float, int], now: float) -> dict[float, int]:
    """Counts by minute for the last hour, by hour for the day before; what is older is dropped."""
    found: dict[float, int] = {}
    for at, count in minutes.items():
        start = at if at + MINUTE > now - HOUR else math.floor(at / HOUR) * HOUR
        if start + HOUR > now - DAY:
            found[start] = found.get(start, 0) + count
    return found


def _since(counts: dict[float, int], now: float, window: float, width: float) -> int:
    return sum(count for at, count in counts.items() if at + width > now - window)
