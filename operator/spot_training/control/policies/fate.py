"""What has become of a machine that a pod of ours ran on.

``GONE`` needs proof: another UID under the same name, a taint that says so, or a deleted Node where the pool's
owner says that deletion means so. Being unreachable for a while is no proof: the machine may still write.
"""

from dataclasses import dataclass
from enum import Enum

from spot_training.api.job import Recovery
from spot_training.api.status import AttemptNode
from spot_training.control.world import Node, Pool, World

NETWORK_SUSPECT_NODES = 3
"""Fewer unreachable nodes than this in a pool are taken for what they seem."""


class Fate(Enum):
    """What is known of the machine."""

    ALIVE = "its kubelet answers"
    SILENT = "not ready, not for long enough to give it up"
    LOST = "given up: its pods are replaced, though it may still run"
    GONE = "proven dead"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A fate, since when it is so, when it changes if nothing else does, and a sentence for people."""

    fate: Fate
    since: float | None = None
    changes_at: float | None = None
    why: str = ""


def judge(ref: AttemptNode, world: World, pool: Pool | None, recovery: Recovery, now: float) -> Verdict:
    """The fate of the machine that ``ref`` names by name and UID."""
    node = world.nodes.get(ref.name)
    if node is None:
        if pool is not None and pool.spec.node_deletion_means_gone:
            return Verdict(Fate.GONE, why=f"node {ref.name} was deleted")
        return Verdict(Fate.LOST, why=f"node {ref.name} was deleted; its machine may still run")
    if node.uid != ref.uid:
        return Verdict(Fate.GONE, why=f"node {ref.name} is another machine now")
    if node.out_of_service:
        return Verdict(Fate.GONE, why=f"node {ref.name} is marked as out of service")
    if node.ready:
        return Verdict(Fate.ALIVE)
    patience = recovery.node_lost_after_seconds
    why = f"node {ref.name} is not ready"
    if suspect_network(world, pool):
        patience = max(patience, recovery.assume_gone_after_seconds)
        why += ", with more than half of its pool (a network fault?)"
    lost_at = node.ready_since + patience
    if now < lost_at:
        return Verdict(Fate.SILENT, since=node.ready_since, changes_at=lost_at, why=why)
    return Verdict(Fate.LOST, since=node.ready_since, why=f"{why} for {int(now - node.ready_since)} s")


def suspect_network(world: World, pool: Pool | None) -> bool:
    """Whether so many nodes of the pool are silent together that the network is the likelier cause."""
    if pool is None:
        return False
    # Counted when a node changes: this is asked for every rank on a silent node, many times in a pass.
    silent = world.silent.get(pool.name, 0)
    return silent >= NETWORK_SUSPECT_NODES and silent * 2 > len(world.members.get(pool.name, ()))


def belongs(node: Node, pool: Pool) -> bool:
    """Whether the pool's selector matches the node."""
    return all(node.labels.get(key) == value for key, value in pool.spec.node_selector.items())
