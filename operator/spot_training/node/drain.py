"""Which pods leave the node next, by which request and with what grace.

Pure: asked again at every step with the pods as they are now, what the API server has answered so far, the deadline
and the time. So a restarted agent, a tightened deadline or a new pod needs no case of its own.

Order. Training pods go first, all at once, whatever PodDisruptionBudgets say: they lose work by the second, and
their PDB cannot keep the machine. Everything else is asked to leave at once too, lowest priority first: a
replacement is made only when its predecessor is told to go, so waiting between priorities, as kubelet's graceful
shutdown does on a machine that stays reachable, would only bring the important ones up later. The exception is what
kubelet makes too: the system's critical pods go when the others have, because the others may need them to end well,
or when just enough time is left for their own grace.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from spot_training.api.names import DEADLINE_MARGIN_SECONDS
from spot_training.node.pods import Pod

SYSTEM_CRITICAL: Final = 2_000_000_000
"""The lowest priority of system-cluster-critical and system-node-critical."""

RESERVED_GRACE_SECONDS: Final = 30
"""So much of a pod's own grace is kept free for it before PDBs are passed over: Kubernetes' default grace."""

CRITICAL_ROOM_SECONDS: Final = 10
"""Critical pods start so much before their grace begins to be cut, to let their PDBs be asked."""

LAST_SECONDS: Final = 3
"""With less than this left there is no time to ask a PDB first."""

LEAST_GRACE_SECONDS: Final = 1
"""Grace 0 removes the object while its containers may still run."""

BACKOFF_FIRST_SECONDS: Final = 0.1
BACKOFF_LONGEST_SECONDS: Final = 2.0


class Step(Enum):
    """How a pod is told to go."""

    EVICT = "evict"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Action:
    """One request: which pod, how, and with how many seconds of grace."""

    pod: Pod
    step: Step
    grace: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of the requests for one pod so far.

    ``not_before``: when to ask again, seconds since the epoch. ``refusals``: how many in a row were refused
    or failed; 0 after one that was accepted.
    """

    not_before: float
    refusals: int = 0


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row (at least one): 0.1 doubling to 2."""
    return min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 10))


def refused(pod: Pod, refusals: int, deadline: float, now: float) -> Asked:
    """When to ask again after so many refusals in a row: backing off, but not past the moment to stop asking."""
    again, last = now + backoff(refusals), deadline - DEADLINE_MARGIN_SECONDS - _reserved(pod)
    return Asked(min(again, last) if last > now else again, refusals)


def leaving(pods: Iterable[Pod]) -> list[Pod]:
    """The pods that a drain waits for: not those that stay with the node, nor those that have ended."""
    return [pod for pod in pods if not pod.stays and not pod.ended]


def next_actions(
    pods: Iterable[Pod], asked: Mapping[str, Asked], deadline: float, now: float
) -> list[Action]:
    """The requests to make now, most urgent first; ``asked`` is by pod UID, times are seconds since the epoch."""
    waiting = leaving(pods)
    ordinary_left = any(pod.priority < SYSTEM_CRITICAL for pod in waiting)
    actions = []
    for pod in sorted(waiting, key=lambda pod: (not pod.job, pod.priority, pod.namespace, pod.name)):
        history = asked.get(pod.uid)
        if history is None or history.not_before <= now:
            action = _action(pod, history, ordinary_left, deadline, now)
            if action is not None:
                actions.append(action)
    return actions


def _reserved(pod: Pod) -> int:
    return min(pod.grace, RESERVED_GRACE_SECONDS)


def _action(
    pod: Pod, history: Asked | None, ordinary_left: bool, deadline: float, now: float
) -> Action | None:
    end = deadline - DEADLINE_MARGIN_SECONDS
    left = max(LEAST_GRACE_SECONDS, int(end - now))
    grace = max(LEAST_GRACE_SECONDS, min(pod.grace, left))
    if pod.kill_at is not None:
        # A deletion time has whole seconds: one second over is not over.
        too_late = pod.kill_at > now + left + 1
        return Action(pod, Step.DELETE, left) if too_late else None
    if pod.job:
        return Action(pod, Step.DELETE, grace)
    own = _reserved(pod)
    if pod.priority >= SYSTEM_CRITICAL and ordinary_left and now < end - own - CRITICAL_ROOM_SECONDS:
        return None
    was_refused = history is not None and history.refusals > 0
    out_of_time = (was_refused and now >= end - own) or now >= end - LAST_SECONDS
    return Action(pod, Step.DELETE if out_of_time else Step.EVICT, grace)
