"""Whether a node takes a pod, and how many of a kind: as the scheduler would say of readiness, taints, labels, room.

Not looked at: affinity between pods, spread constraints, host ports, devices claimed by ResourceClaims. There the
scheduler has the last word, and a gang that does not become whole gives its pods back.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from spot_training.api import names
from spot_training.api.job import PodSpec
from spot_training.control.policies.affinity import matches, required_terms
from spot_training.control.policies.marks import FOREIGN_MARKS
from spot_training.control.policies.needs import pod_needs
from spot_training.control.world import Node, Pool, Shape, Taint, Terms, Toleration

PLACING_EFFECTS: Final = ("NoSchedule", "NoExecute")
PODS: Final = "pods"

STATE_TAINTS: Final = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""What Kubernetes puts before the names of taints for nodes that are not ready, cordoned, under pressure or new."""


def shape_of(
    pod: PodSpec, volumes: tuple[Terms, ...] = (), together: int = 1, ceiling: Decimal | None = None
) -> Shape:
    """The shape of a template's pod, or of so many of them that must be on one node."""
    spec = pod.to_json()
    needs = {key: value * together for key, value in {**pod_needs(spec), PODS: 1}.items()}
    return Shape(
        needs=tuple(sorted(needs.items())),
        selector=tuple(sorted((spec.get("nodeSelector") or {}).items())),
        affinity=required_terms(spec),
        tolerations=_tolerations(spec.get("tolerations") or ()),
        volumes=volumes,
        ceiling=ceiling,
    )


def usable(node: Node) -> bool:
    """Whether the node takes new pods at all."""
    return node.ready and node.schedulable and node.notice is None


def takes(node: Node, pool: Pool, shape: Shape) -> bool:
    """Whether the node takes the pod, apart from room and volumes."""
    return usable(node) and _suits(node, node.taints, pool, shape)


def would_take(node: Node, pool: Pool, shape: Shape) -> bool:
    """Whether the node takes the pod when it is ready and has neither a notice nor a cordon, now or another time."""
    lasting = [taint for taint in node.taints if not _passes(taint.key)]
    return _suits(node, lasting, pool, shape)


def _suits(node: Node, taints: Iterable[Taint], pool: Pool, shape: Shape) -> bool:
    if any(node.labels.get(key) != value for key, value in shape.selector):
        return False
    placing = [taint for taint in taints if taint.effect in PLACING_EFFECTS]
    if placing:
        own = _tolerations(each.to_json() for each in pool.spec.tolerations)
        if not all(_tolerated(taint, (*own, *shape.tolerations)) for taint in placing):
            return False
    return matches(shape.affinity, node)


def _passes(taint: str) -> bool:
    """Whether the taint tells of the node's state, and not of what the node is for."""
    return taint.startswith(STATE_TAINTS) or taint == names.TAINT_RECLAIM or taint in FOREIGN_MARKS


def attaches(node: Node, shape: Shape) -> bool:
    """Whether the pod's volumes can be attached to the node."""
    return all(matches(terms, node) for terms in shape.volumes)


def room(free: Mapping[str, int], shape: Shape) -> int:
    """How many pods of the shape fit into what is free.

    An extended resource (its name has a ``/``) that the node does not know is not there; of cpu, memory and the
    like a node always says how much it has, so that one that does not is not asked.
    """
    found = None
    for resource, each in shape.needs:
        left = free.get(resource)
        if left is None:
            if "/" in resource:
                return 0
            continue
        fits = left // each
        if found is None or fits < found:
            found = fits
    return MANY if found is None else max(0, found)


def room_beside(free: Mapping[str, int], shape: Shape, other: Shape, pods: int) -> int:
    """How many pods of the shape fit beside so many of ``other``; none that needs what these still lack."""
    left = {resource: amount - other.need(resource) * pods for resource, amount in free.items()}
    return room(left, shape)


def lack(free: Mapping[str, int], shape: Shape, pods: int) -> float:
    """How much must become free for so many pods of the shape, in pods: of the resource that is shortest.

    0 where they fit.
    """
    short = (pods - free[resource] / each for resource, each in shape.needs if resource in free)
    return max(0.0, max(short, default=0.0))


MANY: Final = 1 << 20
"""Room for a pod that asks for nothing that the node counts."""


def _tolerations(said: Iterable[Mapping[str, object]]) -> tuple[Toleration, ...]:
    keys = ("key", "operator", "value", "effect")
    return tuple((*(str(each.get(key) or "") for key in keys),) for each in said)  # type: ignore[misc]


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    """Whether one of the tolerations covers the taint (Kubernetes: "Taints and Tolerations")."""
    for key, operator, value, effect in tolerations:
        if effect not in ("", taint.effect):
            continue
        exists = operator == "Exists"
        if (not key and exists) or (key == taint.key and (exists or _covers(operator, value, taint.value))):
            return True
    return False


def _covers(operator: str, value: str, of_taint: str) -> bool:
    """``Lt``: the taint's number is less than the toleration's; ``Gt``: greater (Kubernetes: KEP-5471)."""
    if operator not in ("Lt", "Gt"):
        return value == of_taint
    try:
        found, bound = int(of_taint), int(value)
    except ValueError:
        return False
    return found < bound if operator == "Lt" else found > bound
