"""Which pool takes the next attempt: the first in order whose free nodes hold the whole gang now.

Free GPUs are counted node by node, as the scheduler will see them, with all pods that use them, ours or not,
and with the pods of attempts that are opened but not bound yet.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from spot_training.api.job import PodSpec
from spot_training.control.policies.affinity import describe, matches, required_terms
from spot_training.control.policies.fate import belongs
from spot_training.control.policies.price import dearer_nodes, pool_price
from spot_training.control.world import Node, Pool, Reservation, Taint, Terms, World

PLACING_EFFECTS = ("NoSchedule", "NoExecute")

REASONS = (
    "NoCapacity",
    "BudgetExhausted",
    "OnDemandLater",
    "TooDear",
    "NoPrice",
    "OnDemandNotAllowed",
    "PoolNotFound",
)
"""Where pools were refused for several reasons: the first of these is the job's."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a gang needs. ``pools``: names in the user's order, empty for every pool; ``last``: pools to try last
    for now; ``one_node``: all its pods on one node; ``volumes``: to which nodes its volumes can be attached;
    ``avoid``: names of nodes to keep off; ``queued``: the pods wait in a queue until there is room, so none is needed;
    ``refused``: pools that are not for the job, with a word and a sentence; ``ceiling``: nodes that cost more for an
    hour are not used.
    """

    replicas: int
    pod: PodSpec
    pools: Sequence[str] = ()
    last: frozenset[str] = frozenset()
    one_node: bool = False
    volumes: tuple[Terms, ...] = ()
    avoid: frozenset[str] = frozenset()
    queued: bool = False
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ceiling: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The pool chosen, or None, and of each pool why it was not (by name, in the order they were tried).

    ``node``: the one node for all pods, where the gang needs one.
    """

    pool: str | None
    refused: Mapping[str, str]
    reason: str = ""
    node: str = ""

    @property
    def message(self) -> str:
        """Every pool with its reason, for people."""
        return "; ".join(f"{name}: {why}" if name else why for name, why in self.refused.items())


def choose(request: Request, world: World) -> Choice:
    """The pool for the gang. Pure: the same request and world give the same choice."""
    refused: dict[str, str] = {}
    reasons: set[str] = set()
    for name in _order(request, world):
        pool = world.pools.get(name)
        if pool is None:
            refused[name], reason = "no such SpotPool; create it or mend spec.pools", "PoolNotFound"
        elif name in request.refused:
            reason, refused[name] = request.refused[name]
        else:
            why = None if request.queued else shortage(request, pool, world)
            if why is None:
                return Choice(name, refused, node=_one_node(request, pool, world))
            refused[name], reason = why, "NoCapacity"
        reasons.add(reason)
    if not refused:
        return Choice(None, {"": "there is no SpotPool with capacityType Spot; create one"}, "PoolNotFound")
    for reason in REASONS:
        if reason in reasons:
            break
    return Choice(None, refused, reason)


def _order(request: Request, world: World) -> list[str]:
    """Spot pools before on-demand ones, which only stand in; those to be tried last behind both."""

    def stands_in(name: str) -> bool:
        return name in world.pools and world.pools[name].spec.capacity_type == "OnDemand"

    def price(pool: Pool) -> Decimal:
        known = pool_price(pool, world.prices)
        return Decimal("Infinity") if known is None else known

    if request.pools:
        names = list(request.pools)
    else:
        # Nobody named the on-demand pools: where they are not allowed, they are not worth a word.
        unwanted = {name for name, (word, _) in request.refused.items() if word == "OnDemandNotAllowed"}
        every = [pool for pool in world.pools.values() if pool.name not in unwanted]
        every.sort(key=lambda pool: (price(pool), pool.name))
        names = [pool.name for pool in every]
    return sorted(names, key=lambda name: (name in request.last, stands_in(name)))


def shortage(request: Request, pool: Pool, world: World) -> str | None:
    """Why the pool cannot hold the gang now, or None where it can."""
    need = gpus_per_pod(request.pod, pool.spec.gpu_resource)
    members = [node for node in world.nodes.values() if belongs(node, pool)]
    if not members:
        return "no node matches its nodeSelector"
    usable = _usable(request, members, pool, world)
    if not usable:
        return (
            f"none of its {len(members)} nodes is ready and free of notices and cordons, and one that the "
            "template's nodeSelector, nodeAffinity and tolerations allow"
        )
    attachable = _attachable(request, usable)
    if not attachable:
        where = " and ".join(describe(terms) for terms in request.volumes)
        return f"to none of its {len(usable)} usable nodes can the job's volumes be attached ({where})"
    usable = [node for node in attachable if node.name not in request.avoid]
    if not usable:
        return f"its {len(attachable)} usable nodes are avoided for now: attempts failed there"
    free = free_gpus(usable, pool, world)
    if need == 0:
        return None
    if request.one_node:
        if any(amount >= need * request.replicas for amount in free.values()):
            return None
        return (
            f"{request.replicas} pods of {need} {pool.spec.gpu_resource} do not fit on one node, as their "
            f"ReadWriteOnce claim needs it: at most {max(free.values())} free on one of {len(usable)} nodes"
        )
    slots = sum(amount // need for amount in free.values())
    if slots >= request.replicas:
        return None
    return (
        f"{request.replicas} pods of {need} {pool.spec.gpu_resource} do not fit: "
        f"{sum(free.values())} free on {len(usable)} nodes, room for {slots}"
    )


def _usable(request: Request, members: Sequence[Node], pool: Pool, world: World) -> list[Node]:
    terms = required_terms(request.pod.model_extra or {})
    dear = frozenset(dearer_nodes(members, pool, world.prices, request.ceiling))
    fit = [node for node in members if usable_for(request.pod, node, pool) and matches(terms, node)]
    return [node for node in fit if node.name not in dear]


def _attachable(request: Request, nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if all(matches(terms, node) for terms in request.volumes)]


def _one_node(request: Request, pool: Pool, world: World) -> str:
    """The node for a gang that needs one, in a pool that has one: the fullest on which it fits."""
    if not request.one_node or request.queued:
        return ""
    members = [node for node in world.nodes.values() if belongs(node, pool)]
    nodes = _attachable(request, _usable(request, members, pool, world))
    free = free_gpus([node for node in nodes if node.name not in request.avoid], pool, world)
    need = gpus_per_pod(request.pod, pool.spec.gpu_resource) * request.replicas
    return min((amount, name) for name, amount in free.items() if amount >= need)[1]


def free_gpus(nodes: Iterable[Node], pool: Pool, world: World) -> dict[str, int]:
    """Free GPUs by node name, after what is used and what opened attempts will use.

    A reservation names no node. It is laid on the nodes with the least room that hold a pod of it, as packing
    would; where it does not fit, what is left of it is dropped: its pods wait then, too.
    """
    resource = pool.spec.gpu_resource
    free = {
        node.name: max(0, node.capacity.get(resource, 0) - world.used.get((node.name, resource), 0))
        for node in nodes
    }
    for reservation in world.reservations:
        if reservation.resource == resource:
            _reserve(free, reservation, world, pool)
    return free


def _reserve(free: dict[str, int], reservation: Reservation, world: World, pool: Pool) -> None:
    other = world.pools.get(reservation.pool)
    if other is None:
        return
    allowed = [
        name
        for name in free
        if (reservation.pool == pool.name or ((node := world.nodes.get(name)) and belongs(node, other)))
        and reservation.node in ("", name)
    ]
    size, left = reservation.gpus_per_pod, reservation.pods
    if size == 0:
        return
    # A node that has taken a pod has the least room of all: it is filled before the next one is looked at.
    for name in sorted(allowed, key=lambda name: (free[name], name)):
        taken = min(left, free[name] // size)
        free[name] -= taken * size
        left -= taken


def usable_for(pod: PodSpec, node: Node, pool: Pool) -> bool:
    """Whether the scheduler would put the pod on the node, as far as readiness, taints and labels say."""
    if not (node.ready and node.schedulable) or node.notice is not None:
        return False
    extra = pod.model_extra or {}
    if any(node.labels.get(key) != value for key, value in (extra.get("nodeSelector") or {}).items()):
        return False
    tolerations = [toleration.to_json() for toleration in pool.spec.tolerations]
    tolerations += extra.get("tolerations") or []
    return all(tolerated(taint, tolerations) for taint in node.taints if taint.effect in PLACING_EFFECTS)


def tolerated(taint: Taint, tolerations: Iterable[Mapping[str, object]]) -> bool:
    """Whether one of the tolerations covers the taint (Kubernetes: taints and tolerations)."""
    for each in tolerations:
        if each.get("effect") not in (None, "", taint.effect):
            continue
        key, exists = each.get("key") or "", each.get("operator") == "Exists"
        if (not key and exists) or (
            key == taint.key and (exists or (each.get("value") or "") == taint.value)
        ):
            return True
    return False


def gpus_per_pod(pod: PodSpec, resource: str) -> int:
    """GPUs that a pod of the template asks for: extended resources are whole numbers, requests equal limits."""
    total = 0
    for container in pod.containers:
        wanted = container.resources
        if wanted is None:
            continue
        amount = (wanted.limits or {}).get(resource) or (wanted.requests or {}).get(resource) or 0
        total += _whole(amount)
    return total


def _whole(amount: int | str) -> int:
    """A whole quantity such as ``4``, ``"4"`` or ``"1k"``; 0 for what is none: the dry run says what is wrong."""
    found = re.fullmatch(r"([0-9]{1,15})([kMG]?)", str(amount))
    return int(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]] if found else 0
