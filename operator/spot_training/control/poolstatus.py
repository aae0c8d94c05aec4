"""What a pool's status says, from what is there now and what the status said before. Pure.

- A node belongs to every pool whose selector its labels match. Where pools overlap each counts the node, no GPU is
  given away twice, and the condition ``Overlapping`` names the other pools.
- A node whose labels change belongs to its new pool from then on. An attempt that runs on it goes on, in the pool in
  which it was opened; that pool's condition ``NodesElsewhere`` names the nodes.
- A pool whose selector matches nothing is not available, for the reason ``NoNodes``.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal

from spot_training.api.model import Condition
from spot_training.api.pool import GpuCounts, NodeCounts, Price, SpotPoolStatus, Users
from spot_training.api.times import format_second
from spot_training.control import conditions
from spot_training.control.policies.fitting import usable
from spot_training.control.policies.interruptions import (
    Signs,
    breaker_until,
    bring_forward,
    machine_key,
    marks_of,
    next_change,
)
from spot_training.control.policies.price import price_range, write_amount
from spot_training.control.world import Job, Node, Pool

MAX_NAMES = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """A pool as it is now. ``free``: GPUs by node, after reservations; ``overlaps``: nodes with another pool that
    has them, too; ``users``: jobs with an open attempt here; ``prices``: what the price file says, by pool;
    ``lost``: when machines were lost without a notice, by UID, as jobs remember it; ``vanished``: keys of those whose
    Nodes have gone; ``moved``: marks that a pool has counted in which the node was.
    """

    members: tuple[Node, ...] = ()
    free: dict[str, int] | None = None
    users: tuple[Job, ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()
    prices: Mapping[str, Decimal] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    vanished: Set[str] = frozenset()
    moved: Set[str] = frozenset()


def pool_status(pool: Pool, seen: Seen, now: float) -> SpotPoolStatus:
    """The pool's status; conditions and the memory of interruptions carry over from ``pool.status``."""
    members, free = seen.members, seen.free or {}
    open_nodes = [node for node in members if usable(node)]
    total = sum(node.capacity.get(pool.spec.gpu_resource, 0) for node in open_nodes)
    interruptions = bring_forward(
        pool.status.interruptions, pool.status.nodes.total, _signs(pool, seen, now), len(members), now
    )
    names = sorted(f"{job.namespace}/{job.name}" for job in seen.users)
    made = SpotPoolStatus(
        observed_generation=pool.generation,
        nodes=NodeCounts(
            total=len(members),
            ready=sum(1 for node in members if node.ready),
            reclaiming=sum(1 for node in members if node.notice is not None),
        ),
        gpus=GpuCounts(total=total, free=sum(free.get(node.name, 0) for node in open_nodes)),
        interruptions=interruptions,
        jobs=Users(count=len(names), names=names[:MAX_NAMES]),
        price=_price(pool, seen),
        conditions=pool.status.conditions,
    )
    with_room = sum(1 for node in open_nodes if free.get(node.name, 0) > 0)
    return made.model_copy(update={"conditions": _conditions(pool, made, with_room, seen, now)})


def _signs(pool: Pool, seen: Seen, now: float) -> Signs:
    # What a person or an autoscaler takes away has been cordoned before.
    missed = [node for node in seen.members if node.notice is None and node.schedulable]
    lost = {machine_key(uid): at for uid, at in seen.lost.items()}
    return Signs(
        marks=marks_of(seen.members),
        moved=seen.moved,
        lost=dict.fromkeys(seen.vanished, now) | lost,
        silent={machine_key(node.uid) for node in seen.members if not node.ready},
        machines={machine_key(node.uid) for node in missed if pool.spec.node_deletion_means_gone},
    )


def _price(pool: Pool, seen: Seen) -> Price | None:
    found = price_range(seen.members, pool, seen.prices)
    if found is None:
        return None
    lowest, highest = (write_amount(each) for each in found)
    return Price(lowest=lowest, highest=highest, shown=lowest if lowest == highest else f"{lowest}-{highest}")


def next_look(pool: Pool, now: float) -> float:
    """In how many seconds time alone may change the status."""
    until = breaker_until(pool, now)
    soon = next_change(pool.status.interruptions, now)
    return max(1.0, min(soon, until - now) if until is not None else soon)


def _conditions(pool: Pool, made: SpotPoolStatus, with_room: int, seen: Seen, now: float) -> list[Condition]:
    held = list(made.conditions)

    def put(type_: str, value: bool, reason: str, message: str) -> None:
        nonlocal held
        held = conditions.put(held, type_, value, reason, message, pool.generation, now)

    until = breaker_until(Pool(pool.name, pool.spec, status=made), now)
    if until is not None:
        text = (
            f"{made.interruptions.last_hour} interruptions in the last hour, more than maxInterruptionsPerHour "
            f"{pool.spec.max_interruptions_per_hour}: nothing new is placed here until {format_second(until)}"
        )
        put("BreakerOpen", True, "TooManyInterruptions", text)
    elif pool.spec.max_interruptions_per_hour is not None or conditions.find(held, "BreakerOpen"):
        put("BreakerOpen", False, "Closed", f"{made.interruptions.last_hour} interruptions in the last hour")
    if not seen.members:
        put("Available", False, "NoNodes", "No capacity currently available: no node matches nodeSelector")
    elif with_room:
        put("Available", True, "Available", f"Currently available ({with_room})")
    else:
        put("Available", False, "NoCapacity", "No capacity currently available")
    _list(put, held, "Overlapping", "SharedNodes", "NoSharedNodes", _shared(seen))
    _list(put, held, "NodesElsewhere", "NodesLeft", "NoNodesLeft", _elsewhere(pool, seen))
    return held


def _list(
    put: Callable[[str, bool, str, str], None],
    held: Sequence[Condition],
    type_: str,
    there: str,
    none: str,
    text: str,
) -> None:
    """A condition that is only there once it has been true."""
    if text:
        put(type_, True, there, text)
    elif conditions.find(held, type_):
        put(type_, False, none, "")


def _shared(seen: Seen) -> str:
    if not seen.overlaps:
        return ""
    nodes = sorted({node for node, _ in seen.overlaps})
    others = sorted({other for _, other in seen.overlaps})
    return (
        f"{len(nodes)} nodes are also in {_some(others)}: {_some(nodes)}; each pool counts them, and their GPUs are "
        "given away once"
    )


def _elsewhere(pool: Pool, seen: Seen) -> str:
    mine = {node.name for node in seen.members}
    left = {
        ref.name: job
        for job in seen.users
        for ref in (job.status.current.nodes if job.status.current else ())
        if ref.name not in mine
        and job.status.current
        and job.status.current.stop is None
        and job.status.current.pool_of(ref.index) == pool.name
    }
    if not left:
        return ""
    jobs = sorted({f"{job.namespace}/{job.name}" for job in left.values()})
    return f"attempts of this pool run on {_some(sorted(left))}, which nodeSelector does not match now: {_some(jobs)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
