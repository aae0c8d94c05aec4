"""The supply, less what has been promised: what attempts that are starting will use, and what one pass gives away.

A reservation names no node. It is laid on the nodes with the least room that hold a pod of it, as packing would;
where it does not fit, what is left of it is dropped: its pods wait then, too. Made for one pass and thrown away.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Set

from spot_training.control.policies.fitting import lack, room, room_beside
from spot_training.control.supply import Fit, Supply
from spot_training.control.world import Reservation, Shape


class _Counted:
    """How a shape fits into a pool after what the ledger has given away.

    ``fullest``: a heap of the nodes that hold a pod of it by what is left there of the pool's GPUs; made when it is
    first needed, and with one more entry each time that a node changes: an entry that is not true any more is passed
    over. A thousand gangs are so laid on thousands of nodes without looking at all of them for each.
    """

    __slots__ = ("base", "changed", "fullest", "slots")

    def __init__(self, base: Fit) -> None:
        self.base = base
        self.slots = base.slots
        self.changed: dict[str, int] = {}
        self.fullest: list[tuple[int, str]] | None = None

    def at(self, node: str) -> int:
        known = self.changed.get(node)
        return known if known is not None else self.base.spots[node].slots

    def put(self, node: str, slots: int) -> None:
        self.slots += slots - self.at(node)
        self.changed[node] = slots


class Ledger:
    """What is left to give, by pool and shape."""

    def __init__(self, supply: Supply, reservations: Iterable[Reservation] = ()) -> None:
        self._supply = supply
        self._counted: dict[str, dict[Shape, _Counted]] = defaultdict(dict)
        self._taken: dict[str, dict[str, int]] = {}
        self._touched: dict[str, dict[str, None]] = defaultdict(dict)
        self._held: set[str] = set()
        self._kept: dict[str, list[tuple[Shape, int]]] = {}
        self._kept_in: dict[str, set[str]] = defaultdict(set)
        self.changes: dict[str, int] = defaultdict(int)
        """By pool, how often what is left there has changed."""
        pods: dict[tuple[str, Shape, frozenset[str], str], int] = defaultdict(int)
        for each in reservations:
            if each.pool in supply.pools:
                # Hundreds of gangs alike are laid as one: the same nodes in the same order.
                pods[each.pool, each.shape, each.avoid, each.node] += each.pods
        for pool, shape, avoid, node in sorted(pods, key=self._hardest):
            self.take(pool, shape, pods[pool, shape, avoid, node], avoid, node=node)

    def slots(self, pool: str, shape: Shape, avoid: Set[str] = frozenset()) -> int:
        """How many pods of the shape fit into the pool, on other nodes than those."""
        found = self._count(pool, shape)
        if not avoid:
            return found.slots
        spots = found.base.spots
        return found.slots - sum(found.at(name) for name in avoid if name in spots)

    def take(
        self, pool: str, shape: Shape, pods: int, avoid: Set[str] = frozenset(), node: str = ""
    ) -> list[str]:
        """Give so many pods of the shape room, as far as there is any; the nodes that took them."""
        found = self._count(pool, shape)
        resource = self._supply.pools[pool].spec.gpu_resource
        if not node:
            fullest = self._fullest(found, resource)
        else:
            fullest = [(self.left(node, resource), node)] if node in found.base.spots else []
        laid: dict[str, None] = {}
        avoided: list[tuple[int, str]] = []
        # A node that has taken a pod has the least room of all: it is filled before the next one is looked at.
        while pods > 0 and fullest:
            entry = heapq.heappop(fullest)
            left, name = entry
            if name in laid or found.at(name) <= 0 or left != self.left(name, resource):
                continue
            if name in avoid:
                avoided.append(entry)
                continue
            count = min(pods, found.at(name))
            pods -= count
            laid[name] = None
            taken = self._taken.setdefault(name, {})
            for key, each in shape.needs:
                taken[key] = taken.get(key, 0) + each * count
        for entry in avoided:
            heapq.heappush(fullest, entry)
        for name in laid:
            self._change(name)
        return list(laid)

    def _fullest(self, found: _Counted, resource: str) -> list[tuple[int, str]]:
        if found.fullest is None:
            # What is sorted is a heap.
            found.fullest = found.base.fullest.copy()
            for name in found.changed:
                if found.at(name) > 0:
                    heapq.heappush(found.fullest, (self.left(name, resource), name))
        return found.fullest

    def free(self, node: str) -> dict[str, int]:
        """What is left on the node, by resource."""
        free = self._supply.free(self._supply.nodes[node])
        for key, amount in self._taken.get(node, {}).items():
            if key in free:
                free[key] = max(0, free[key] - amount)
        return free

    def left(self, node: str, resource: str) -> int:
        """What is left of one resource on the node; less than nothing where pods use more than it has."""
        left = self._supply.left(self._supply.nodes[node], resource)
        taken = self._taken.get(node)
        return left - taken.get(resource, 0) if taken else left

    def hold(self, pool: str, shape: Shape, pods: int, avoid: Set[str] = frozenset()) -> None:
        """From now on give away nothing that would let so many pods of the shape wait longer in the pool.

        They are held room for on the nodes that lack least of it, room by room, those to keep off last. What is given
        away later leaves them that room, where it is free, and takes nothing of what they still lack there.
        """
        self._held.add(pool)
        near = {pool}
        for name, count in self._soonest(pool, shape, pods, avoid).items():
            self._kept.setdefault(name, []).append((shape, count))
            free = self.free(name)
            for other in self._supply.pools_of(name):
                near.add(other)
                self._touched[other][name] = None
                self._kept_in[other].add(name)
                for known, found in self._counted[other].items():
                    self._recount(found, name, known, free)
        for other in near:
            self.changes[other] += 1

    def _soonest(self, pool: str, shape: Shape, pods: int, avoid: Set[str]) -> dict[str, int]:
        """Where so many pods would have room first, by node, if all training there ended.

        Of the rooms held, the one that lacks most can only come to lack less from one decision to the next, whatever
        is chosen then: nothing is given away that would make another of them lack more. So what is held gets whole.
        """
        spots = self._supply.fit(pool, shape).spots
        frees = {name: self.free(name) for name, spot in spots.items() if spot.ever}
        rooms = [(name in avoid, lack(free, shape, 1), name, 1) for name, free in frees.items()]
        heapq.heapify(rooms)
        made: dict[str, int] = {}
        while rooms and pods > 0:
            off, _, name, count = rooms[0]
            made[name] = count
            pods -= 1
            if count < spots[name].ever:
                heapq.heapreplace(rooms, (off, lack(frees[name], shape, count + 1), name, count + 1))
            else:
                heapq.heappop(rooms)
        return made

    def holds(self, pool: str) -> bool:
        """Whether the pool is held for somebody."""
        return pool in self._held

    def slots_unheld(self, pool: str, shape: Shape) -> int:
        """How many pods of the shape would fit into the pool if nothing were held for anybody."""
        found = self._count(pool, shape)
        kept = (name for name in self._kept_in.get(pool, ()) if name in found.base.spots)
        more = (
            room(self.free(name), shape) - found.at(name) for name in kept if found.base.spots[name].slots
        )
        return found.slots + sum(more)

    def _count(self, pool: str, shape: Shape) -> _Counted:
        known = self._counted[pool].get(shape)
        if known is None:
            known = self._counted[pool][shape] = _Counted(self._supply.fit(pool, shape))
            for name in self._touched.get(pool, ()):
                self._recount(known, name, shape)
        return known

    def _recount(self, found: _Counted, name: str, shape: Shape, left: dict[str, int] | None = None) -> None:
        spot = found.base.spots.get(name)
        if spot is None or not spot.slots:
            return
        free = left if left is not None else self.free(name)
        slots = room(free, shape)
        for held, pods in self._kept.get(name, ()):
            slots = min(slots, room_beside(free, shape, held, pods))
        found.put(name, slots)

    def _change(self, name: str) -> None:
        free = self.free(name)
        for pool in self._supply.pools_of(name):
            self._touched[pool][name] = None
            self.changes[pool] += 1
            left = self.left(name, self._supply.pools[pool].spec.gpu_resource)
            for shape, found in self._counted[pool].items():
                self._recount(found, name, shape, free)
                if found.fullest is not None and name in found.base.spots and found.at(name) > 0:
                    heapq.heappush(found.fullest, (left, name))

    def _hardest(self, kind: tuple[str, Shape, frozenset[str], str]) -> tuple[object, ...]:
        """What makes it come before others: its one node, its GPUs, the few nodes that take it."""
        pool, shape, avoid, node = kind
        gpus = max((amount for name, amount in shape.needs if "/" in name), default=0)
        takes = self._supply.fit(pool, shape).attachable - len(avoid)
        return not node, -gpus, pool, takes, shape.needs
