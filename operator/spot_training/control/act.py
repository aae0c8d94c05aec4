"""What to create and delete so that the cluster follows the job's written status. Pure.

Only ever fed with a job as the API server returned it: what is not in its status is not done.
"""

from dataclasses import dataclass
from typing import Final

from spot_training.api.names import DEADLINE_MARGIN_SECONDS
from spot_training.api.status import Current
from spot_training.control import conditions, ondemand
from spot_training.control.draft import moment
from spot_training.control.world import Claim, Job, Pod, World

LATE_SECONDS: Final = 2.0
"""Of the margin before the deadline, so much may be used before a deletion is made again with a shorter grace."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the pod of a rank of the current attempt.

    ``limit``: seconds that it may run on the job's budget; ``avoid``: nodes that it is kept off.
    """

    index: int
    limit: int | None = None
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateService:
    """Create the headless service of the gang, where it is not there."""


@dataclass(frozen=True, slots=True)
class CreateClaim:
    """Create the checkpoint claim from the template, where it is not there."""


@dataclass(frozen=True, slots=True)
class OwnClaim:
    """Make the job the owner of its checkpoint claim, so that it goes with the job."""

    name: str


@dataclass(frozen=True, slots=True)
class DisownClaim:
    """Let the checkpoint claim of that UID outlive the job, which is its only owner."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete this very pod; ``grace`` in seconds, or the pod's own."""

    name: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the job, whose time to live after its end is over."""


Action = CreatePod | CreateService | CreateClaim | OwnClaim | DisownClaim | DeletePod | DeleteJob


def actions(job: Job, world: World, now: float) -> list[Action]:
    """The actions that the job's status asks for in this world."""
    current = job.status.current
    if job.deleting:
        return []
    if job.finished:
        return _after_the_end(job, world, now)
    made: list[Action] = _ownership(job, world.claim)
    if current is None:
        return made
    made += _clear_older(world, current.attempt)
    mine = [pod for pod in world.pods if pod.attempt == current.attempt]
    if current.end is not None:
        made += [DeletePod(pod.name, pod.uid) for pod in mine if _alive(pod) and not pod.deleting]
    elif current.stop is not None:
        deadline = moment(current.stop.deadline)
        made += [each for pod in mine if (each := _stop(pod, deadline, now)) is not None]
    elif current.started_at is None:
        made += _create(job, current, world, mine, now)
    return made


def _create(job: Job, current: Current, world: World, mine: list[Pod], now: float) -> list[Action]:
    made: list[Action] = []
    if world.claim is None and job.spec.checkpoint.claim_template is not None:
        made.append(CreateClaim())
    there = {pod.index for pod in mine if not pod.removed or _may_run_on(pod, world)}
    missing = [index for index in range(job.replicas) if index not in there]
    # The same for all ranks in a pool.
    ranks = {current.pool_of(index): index for index in missing}
    limits = {pool: ondemand.limits(job, world, index, now) for pool, index in ranks.items()}
    if any(limit == 0 for limit, _ in limits.values()):
        return made
    if missing and job.replicas > 1:
        made.append(CreateService())
    return made + [CreatePod(index, *limits[current.pool_of(index)]) for index in missing]


def _may_run_on(pod: Pod, world: World) -> bool:
    """Whether a pod that is gone may run on where nobody can say so: what it means is for the next plan to decide."""
    node = world.nodes.get(pod.node)
    return pod.node != "" and not pod.ended and (node is None or not node.ready)


def _clear_older(world: World, attempt: int) -> list[DeletePod]:
    """Pods of older attempts: what still runs is deleted; what has ended stays for one attempt, for its logs."""
    return [
        DeletePod(pod.name, pod.uid)
        for pod in world.pods
        if pod.attempt < attempt
        and not pod.removed
        and not pod.deleting
        and (not pod.ended or pod.attempt < attempt - 1)
    ]


def _after_the_end(job: Job, world: World, now: float) -> list[Action]:
    ttl, ended = job.spec.ttl_seconds_after_finished, moment(job.status.completion_time)
    if ttl is not None and ended is not None and now >= ended + ttl:
        return [DeleteJob()]
    made: list[Action] = [
        DeletePod(pod.name, pod.uid) for pod in world.pods if _alive(pod) and not pod.deleting
    ]
    made += _ownership(job, world.claim)
    return made


def _ownership(job: Job, claim: Claim | None) -> list[Action]:
    """Whether the claim that was made from the template goes with the job: as ``retain`` says now."""
    checkpoint = job.spec.checkpoint
    if checkpoint.claim_template is None or claim is None or claim.deleting or claim.made_for != job.name:
        return []
    succeeded = conditions.is_true(job.status.conditions, "Completed")
    wanted = checkpoint.retain == "Never" or (checkpoint.retain == "OnFailure" and succeeded)
    if wanted and not claim.owner_uids:
        return [OwnClaim(claim.name)]
    if not wanted and claim.owner_uids == (job.uid,):
        return [DisownClaim(claim.name, claim.uid)]
    return []


def _stop(pod: Pod, deadline: float | None, now: float) -> DeletePod | None:
    """The deletion that makes the pod stop in time, or None where it does already."""
    if not _alive(pod):
        return None
    if deadline is None:
        return None if pod.deleting else DeletePod(pod.name, pod.uid)
    grace = max(1, int(deadline - now - DEADLINE_MARGIN_SECONDS))
    if pod.budget_seconds is not None:
        # No more than its own is paid for, however late the machine goes.
        grace = min(grace, pod.grace)
    if not pod.deleting:
        return DeletePod(pod.name, pod.uid, grace)
    # A grace can only be shortened, and what rounding and a slow request have cost is not worth another.
    last = max(deadline - DEADLINE_MARGIN_SECONDS, now + 1)
    late = pod.kill_at is not None and pod.kill_at > last + LATE_SECONDS
    return DeletePod(pod.name, pod.uid, grace) if late else None


def _alive(pod: Pod) -> bool:
    return not pod.ended and not pod.removed
