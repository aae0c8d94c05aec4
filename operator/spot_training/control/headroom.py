"""Nodes that an autoscaled pool keeps warm: pods of negative priority, each of the size of a node, hold them. Pure.

The autoscaler brings and keeps nodes for them as for any pods; the scheduler removes them when a job's pods come, and
they are made again, to wait for the next node (Kubernetes: "Overprovision Node Capacity For A Cluster"). Their names
are numbered, so that there are never more of them than were asked for, whoever makes them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from spot_training.api import names
from spot_training.api.pool import HeadroomStatus, SpotPoolStatus
from spot_training.api.times import format_second
from spot_training.control import conditions
from spot_training.control.draft import Story
from spot_training.control.policies.interruptions import breaker_until
from spot_training.control.world import Node, Pod, Pool

Json = dict[str, Any]

CONDITION: Final = "Headroom"
GRACE_SECONDS: Final = 5
"""The pod ends at once. With no grace at all its GPUs would be given away before kubelet has them back."""

RETRY_SECONDS: Final = 30.0
MAX_TROUBLE: Final = 400


@dataclass(frozen=True, slots=True)
class Placeholders:
    """How the pods are made: where, of what image, with which PriorityClass and secrets to pull the image."""

    namespace: str
    image: str
    priority_class: str
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Headroom:
    """What is there of a pool's headroom, and what is to be done: numbers of pods to make, and pods to delete.

    ``reason`` and ``message``: for the condition.
    """

    nodes: int
    warm: int
    reason: str
    message: str
    gpus: int = 0
    create: tuple[int, ...] = ()
    delete: tuple[Pod, ...] = ()


def headroom(
    pool: Pool,
    members: Mapping[str, Node],
    nodes: Mapping[str, Node],
    pods: Iterable[Pod],
    settings: Placeholders,
    now: float,
    refused: str = "",
) -> Headroom:
    """What the pool's headroom needs. ``members``: its nodes, and ``nodes``: all, by name; ``pods``: that hold its
    nodes now; ``refused``: why the last could not be made.
    """
    asked = pool.spec.headroom
    wanted = asked.nodes if asked is not None and not pool.deleting else 0
    until = breaker_until(pool, now)
    gpus = _gpus_of_node(pool, members)
    keep = wanted if until is None else 0
    digest = _digest(placeholder(pool, 0, gpus, settings)) if gpus else None
    there = sorted(pods, key=lambda pod: pod.index)
    delete = [
        pod
        for pod in there
        if not pod.deleting
        and (
            pod.index >= keep
            or pod.ended
            or (digest is not None and pod.made_from != digest)
            or (pod.node in nodes and _goes(members.get(pod.node)))
        )
    ]
    taken = {pod.index for pod in there}
    free = [index for index in range(keep) if index not in taken] if gpus else []
    # What is going counts, too, until it is gone.
    create = free[: max(0, keep - len(there))]
    good = [pod for pod in there if not pod.deleting and pod not in delete]
    warm = sum(1 for pod in good if pod.node in members and members[pod.node].ready)
    made = Headroom(wanted, warm, "", "", gpus, tuple(create), tuple(delete))
    waiting = next((pod.trouble for pod in good if not pod.node and pod.trouble), "")
    reason, message = _said(pool, made, until, waiting[:MAX_TROUBLE], refused[:MAX_TROUBLE])
    return replace(made, reason=reason, message=message)


def _said(pool: Pool, made: Headroom, until: float | None, waiting: str, refused: str) -> tuple[str, str]:
    """Reason and message for the condition."""
    if not made.nodes:
        return "NotWanted", "headroom.nodes is 0"
    some = f"{made.warm} of {made.nodes} nodes are kept warm"
    if until is not None:
        text = f"none is kept warm while the breaker is open, until {format_second(until)}"
        return "HeadroomPaused", text
    if not made.gpus:
        text = (
            f"{some}: no node of the pool has {pool.spec.gpu_resource}, so that nobody knows how large one is; set "
            "headroom.gpusPerNode"
        )
        return "NodeSizeUnknown", text
    if made.warm >= made.nodes:
        return "HeadroomWarm", some
    if refused:
        return "HeadroomRefused", f"{some}; {refused}"
    behind = f": {waiting}" if waiting else ""
    return "HeadroomPending", f"{some}; the others wait for nodes{behind}"


def with_headroom(
    pool: Pool, status: SpotPoolStatus, made: Headroom, now: float
) -> tuple[SpotPoolStatus, Story | None]:
    """The pool's status with what there is of its headroom, and what is to be told of that."""
    known = conditions.find(status.conditions, CONDITION)
    if not made.nodes and known is None:
        return status, None
    full = made.reason == "HeadroomWarm"
    held = conditions.put(status.conditions, CONDITION, full, made.reason, made.message, pool.generation, now)
    shown = HeadroomStatus(nodes=made.nodes, warm=made.warm) if made.nodes else None
    story = None
    if (known is None or known.reason != made.reason) and made.nodes:
        quiet = made.reason in ("HeadroomWarm", "HeadroomPending")
        story = Story("Normal" if quiet else "Warning", made.reason, made.message)
    return status.model_copy(update={"conditions": held, "headroom": shown}), story


def _gpus_of_node(pool: Pool, members: Mapping[str, Node]) -> int:
    """GPUs of a whole node, or 0 where neither the pool nor a node of it says so."""
    said = pool.spec.headroom.gpus_per_node if pool.spec.headroom is not None else None
    if said is not None:
        return said
    return max((node.capacity.get(pool.spec.gpu_resource, 0) for node in members.values()), default=0)


def _goes(member: Node | None) -> bool:
    """Whether a node that is known will be taken, or is the pool's no more."""
    return member is None or member.notice is not None


def placeholder(pool: Pool, index: int, gpus: int, settings: Placeholders) -> Json:
    """The pod that holds a node of the pool; it goes with the pool."""
    room = {pool.spec.gpu_resource: str(gpus)}
    spec: Json = {
        "priorityClassName": settings.priority_class,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": dict(pool.spec.node_selector),
        "tolerations": [each.to_json() for each in pool.spec.tolerations],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "pause",
                "image": settings.image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["pause"],
                "resources": {"requests": {"cpu": "1m", "memory": "16Mi", **room}, "limits": room},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    made: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{pool.name}-headroom-{index}",
            "namespace": settings.namespace,
            "labels": {names.LABEL_INDEX: str(index)},
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.POOL_KIND,
                    "name": pool.name,
                    "uid": pool.uid,
                    "controller": True,
                }
            ],
        },
        "spec": spec,
    }
    made["metadata"]["annotations"] = {names.MADE_FROM: _digest(made)}
    return made


def _digest(made: Json) -> str:
    """Tells pods that were made from another definition of the pool."""
    about = (made["metadata"]["ownerReferences"], made["spec"])
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
