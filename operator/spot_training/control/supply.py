"""What nodes and pools offer, kept up to date change by change. Plain data; no decision is made here.

A question about a pool ("how many pods of this shape fit?") is answered from a count that is made once, and then
brought up to date for the nodes that have changed since: thousands of nodes cost nothing while nothing happens.
"""

from bisect import bisect_left, insort
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from spot_training.control.policies.fate import belongs
from spot_training.control.policies.fitting import attaches, room, takes, would_take
from spot_training.control.policies.price import node_price, pool_price, too_dear
from spot_training.control.world import Node, Pool, Shape

MAX_SHAPES: Final = 64
"""Shapes of pods for which a pool keeps its count; jobs that wait are of a few shapes."""


@dataclass(slots=True)
class Spot:
    """A node for pods of a shape: pods that fit now, and that would if no training were there; GPUs that are left."""

    slots: int = 0
    ever: int = 0
    left: int = 0
    takes: bool = False
    attaches: bool = False


class Fit:
    """How pods of one shape fit into one pool.

    ``fullest``: the nodes that hold one now, sorted by the GPUs that are left there.
    """

    __slots__ = ("attachable", "dirty", "ever", "fullest", "slots", "spots", "usable")

    def __init__(self) -> None:
        self.spots: dict[str, Spot] = {}
        self.fullest: list[tuple[int, str]] = []
        self.dirty: set[str] = set()
        self.slots = self.ever = self.usable = self.attachable = 0

    def put(self, name: str, spot: Spot | None) -> None:
        """Take in what a node is now; None: it is not there."""
        before = self.spots.pop(name, None)
        for each, sign in ((before, -1), (spot, 1)):
            if each is not None:
                self.slots += sign * each.slots
                self.ever += sign * each.ever
                self.usable += sign * each.takes
                self.attachable += sign * each.attaches
        if before is not None and before.slots > 0:
            del self.fullest[bisect_left(self.fullest, (before.left, name))]
        if spot is not None:
            self.spots[name] = spot
            if spot.slots > 0:
                insort(self.fullest, (spot.left, name))


class Supply:
    """Pools, their nodes, and what of those is in use."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.nodes: dict[str, Node] = {}
        self.prices: Mapping[str, Decimal] = {}
        """What the price file says of a node's hour, by pool."""
        self.version = 0
        """Counts the changes: what was decided at a version holds while it is the same."""
        self._members: dict[str, dict[str, Node]] = {}
        self._pools_of: dict[str, tuple[str, ...]] = {}
        self._silent: dict[str, int] = {}
        self._used: dict[str, dict[str, int]] = defaultdict(dict)
        self._training: dict[str, dict[str, int]] = defaultdict(dict)
        self._fits: dict[str, OrderedDict[Shape, Fit]] = {}
        self._gpus: dict[str, int] = {}
        self._own_prices: dict[str, tuple[int, Decimal]] = {}

    @classmethod
    def of(
        cls, nodes: Iterable[Node], pools: Iterable[Pool], used: Mapping[tuple[str, str], int] | None = None
    ) -> "Supply":
        """A supply of these nodes and pools, where ordinary pods use that much, by node and resource."""
        made = cls()
        for pool in pools:
            made.put_pool(None, pool)
        for node in nodes:
            made.put_node(None, node)
        for (name, resource), amount in (used or {}).items():
            made.use(name, {resource: amount}, training=False)
        return made

    def put_node(self, before: Node | None, after: Node | None) -> None:
        """A node has come (no ``before``), has changed, or is gone (no ``after``)."""
        if before == after:
            return
        if before is not None:
            for pool in self._pools_of.pop(before.name, ()):
                self._members[pool].pop(before.name, None)
                self._own_prices.pop(pool, None)
                self._gpus.pop(pool, None)
                self._silent[pool] -= not before.ready
                self._touch(pool, before.name)
            del self.nodes[before.name]
        if after is not None:
            self.nodes[after.name] = after
            pools = tuple(sorted(name for name, pool in self.pools.items() if belongs(after, pool)))
            self._pools_of[after.name] = pools
            for name in pools:
                self._members[name][after.name] = after
                self._own_prices.pop(name, None)
                self._gpus.pop(name, None)
                self._silent[name] += not after.ready
                self._touch(name, after.name)
        self.version += 1

    def put_pool(self, before: Pool | None, after: Pool | None) -> None:
        """A pool has come, has changed, or is gone."""
        if before is not None and after is not None and before.spec == after.spec:
            self.pools[after.name] = after
            self.version += before.status.interruptions != after.status.interruptions
            return
        self.version += 1
        if before is not None:
            for name in self._members.pop(before.name):
                self._pools_of[name] = tuple(each for each in self._pools_of[name] if each != before.name)
            del self.pools[before.name], self._fits[before.name], self._silent[before.name]
            self._gpus.pop(before.name, None)
            self._own_prices.pop(before.name, None)
        if after is not None:
            self.pools[after.name] = after
            mine = {name: node for name, node in self.nodes.items() if belongs(node, after)}
            self._members[after.name] = mine
            self._silent[after.name] = sum(not node.ready for node in mine.values())
            self._fits[after.name] = OrderedDict()
            for name in mine:
                self._pools_of[name] = tuple(sorted((*self._pools_of[name], after.name)))

    def put_prices(self, prices: Mapping[str, Decimal]) -> None:
        """The price file says something else: which nodes are too dear is counted anew."""
        if prices != self.prices:
            self.version += 1
            for fits in self._fits.values():
                fits.clear()
        self.prices = prices

    def use(self, node: str, needs: Mapping[str, int], sign: int = 1, *, training: bool) -> None:
        """A pod is on the node (sign 1), or is not any more (-1)."""
        for used in (self._used, self._training) if training else (self._used,):
            mine = used[node]
            for resource, amount in needs.items():
                mine[resource] = mine.get(resource, 0) + sign * amount
                if not mine[resource]:
                    del mine[resource]
            if not mine:
                del used[node]
        for pool in self._pools_of.get(node, ()):
            self._touch(pool, node)
        self.version += 1

    def _touch(self, pool: str, node: str) -> None:
        for fit in self._fits[pool].values():
            fit.dirty.add(node)

    def used(self, node: str) -> Mapping[str, int]:
        """What pods use of the node, by resource."""
        return self._used.get(node, {})

    def left(self, node: Node, resource: str) -> int:
        """What is left of one resource on the node; less than nothing where pods use more than it has."""
        return node.capacity.get(resource, 0) - self.used(node.name).get(resource, 0)

    def free(self, node: Node, *, ever: bool = False) -> dict[str, int]:
        """What is free on the node now; with ``ever``, what would be if no training were there."""
        used, training = self._used.get(node.name), self._training.get(node.name) if ever else None
        if not used:
            return dict(node.capacity)
        found = {}
        for resource, amount in node.capacity.items():
            taken = used.get(resource, 0) - (training.get(resource, 0) if training else 0)
            found[resource] = max(0, amount - taken)
        return found

    @property
    def by_pool(self) -> Mapping[str, Mapping[str, Node]]:
        """The nodes of every pool, by its name and theirs."""
        return self._members

    @property
    def silent(self) -> Mapping[str, int]:
        """How many nodes of each pool are not ready."""
        return self._silent

    def members(self, pool: str) -> Mapping[str, Node]:
        """The nodes that the pool's selector matches, by name."""
        return self._members.get(pool, {})

    def pools_of(self, node: str) -> tuple[str, ...]:
        """Names of the pools that the node belongs to."""
        return self._pools_of.get(node, ())

    def price(self, pool: str) -> Decimal | None:
        """Price of one of the pool's nodes for an hour, on an average; None where nobody has said."""
        usual = pool_price(self.pools[pool], self.prices)
        known = self._own_prices.get(pool)
        if known is None:
            own = [node.price for node in self._members[pool].values() if node.price is not None]
            known = self._own_prices[pool] = len(own), sum(own, Decimal(0))
        count, total = known
        if not count:
            return usual
        rest = len(self._members[pool]) - count if usual is not None else 0
        return (total + rest * (usual or 0)) / (count + rest)

    def gpus_per_node(self, pool: str) -> int:
        """GPUs of the pool's largest node, 1 where it has none."""
        known = self._gpus.get(pool)
        if known is None:
            resource = self.pools[pool].spec.gpu_resource
            amounts = (node.capacity.get(resource, 0) for node in self._members[pool].values())
            known = self._gpus[pool] = max(1, max(amounts, default=1))
        return known

    def fit(self, pool: str, shape: Shape) -> Fit:
        """How pods of the shape fit into the pool, by node; to be read only."""
        fits = self._fits[pool]
        found = fits.get(shape)
        if found is None:
            found = fits[shape] = Fit()
            found.dirty.update(self._members[pool])
            if len(fits) > MAX_SHAPES:
                fits.popitem(last=False)
        for name in found.dirty:
            found.put(name, self._spot(pool, name, shape))
        found.dirty.clear()
        return found

    def whole(self, pool: str, shape: Shape) -> int:
        """How many pods of the shape would fit if all the pool's nodes were empty and took pods, as some do not now."""
        where, found = self.pools[pool], 0
        for node in self._members[pool].values():
            dear = too_dear(node_price(node, where, self.prices), shape.ceiling)
            if not dear and would_take(node, where, shape) and attaches(node, shape):
                found += room(node.capacity, shape)
        return found

    def _spot(self, pool: str, name: str, shape: Shape) -> Spot | None:
        node = self._members[pool].get(name)
        if node is None:
            return None
        where = self.pools[pool]
        if not takes(node, where, shape) or too_dear(node_price(node, where, self.prices), shape.ceiling):
            return Spot()
        if not attaches(node, shape):
            return Spot(takes=True)
        ever = self.free(node, ever=True) if name in self._training else None
        now = room(self.free(node), shape)
        left = self.left(node, where.spec.gpu_resource)
        return Spot(now, room(ever, shape) if ever is not None else now, left, True, True)

    def overlaps(self, pool: str) -> Iterator[tuple[str, str]]:
        """Nodes of the pool that another pool has too, with that pool's name."""
        for name in self._members.get(pool, ()):
            for other in self._pools_of[name]:
                if other != pool:
                    yield name, other
