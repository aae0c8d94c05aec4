"""Nodes on which attempts keep failing, and for how long to keep off them.

A driver that hangs, a GPU with memory faults, a disk that is full: they fail one attempt after the other, and a
scheduler that sees free GPUs there comes back to them. Twice on the same machine is taken for no accident.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from spot_training.api.status import SuspectNode
from spot_training.api.times import format_time, parse_time
from spot_training.control.world import Node

STRIKES: Final = 2
"""So many failed attempts on one machine, each within `WINDOW_SECONDS` of the one before, and it is avoided."""

WINDOW_SECONDS: Final = 6 * 3600.0
AVOID_SECONDS: Final = 1800.0

MAX_SUSPECTS: Final = 32

BLAMING: Final = frozenset(
    {"InitFailed", "NodeRefused", "PodRefused", "ProvisionTimeout", "RetryableExit", "StartError"}
)
"""Reasons that speak against the node, beside the program's own failures."""


def strike(
    known: Sequence[SuspectNode], name: str, uid: str, reason: str, now: float, strikes: int = STRIKES
) -> list[SuspectNode]:
    """The suspects after an attempt failed on the machine of that node name and UID; those of long ago are dropped.

    ``strikes``: after how many it is avoided.
    """
    recent = [each for each in known if _counts(each, now)]
    before = next((each for each in recent if (each.name, each.uid) == (name, uid)), None)
    failures = (before.failures if before else 0) + 1
    made = SuspectNode(
        name=name,
        uid=uid,
        failures=failures,
        reason=reason,
        at=format_time(now),
        avoided_until=format_time(now + AVOID_SECONDS) if failures >= strikes else None,
    )
    return [*(each for each in recent if each.name != name), made][-MAX_SUSPECTS:]


def avoided(known: Sequence[SuspectNode], nodes: Mapping[str, Node], now: float) -> dict[str, float]:
    """The nodes to keep off, and until when. A new machine under the old name has done nothing wrong."""
    found = {}
    for each in known:
        until = parse_time(each.avoided_until) if each.avoided_until else 0.0
        node = nodes.get(each.name)
        if until > now and node is not None and node.uid == each.uid:
            found[each.name] = until
    return found


def _counts(each: SuspectNode, now: float) -> bool:
    return now - parse_time(each.at) < WINDOW_SECONDS
