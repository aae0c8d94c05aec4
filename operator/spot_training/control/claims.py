"""The claims that a job mounts: whether that can be done now, and what it means for where the pods may run. Pure."""

from collections.abc import Sequence

from spot_training.control.draft import Draft
from spot_training.control.policies.fate import belongs
from spot_training.control.policies.needs import gpus_per_pod
from spot_training.control.world import Ask, Claim, Job, Source, Terms, World

NEXT_TRY = {
    "ClaimInUse": "next try when that job has ended or is deleted",
    "ClaimNotShareable": "next try when the claim, a pool or a node changes",
    "ResumeClaimUnavailable": "next try within 30 s",
}
"""What ends the waiting; for all others a change of the claim does."""

SOURCE_AGAIN_SECONDS = 30.0
"""Nobody tells of changes to a claim that is another job's."""


def claim_trouble(draft: Draft) -> tuple[str, str] | None:
    """Why the checkpoint claim cannot be mounted now: a reason and what to do."""
    job, claim = draft.job, draft.world.claim
    name = job.claim
    if draft.world.claim_user:
        return (
            "ClaimInUse",
            f"claim {name} is in use by job {draft.world.claim_user}; one live job may use a claim",
        )
    template = job.spec.checkpoint.claim_template
    if claim is None and template is None:
        return "ClaimNotFound", f"create PersistentVolumeClaim {name} in namespace {job.namespace}"
    if claim is not None and claim.deleting:
        return "ClaimDeleting", f"claim {name} is being deleted; use another claim, or wait until it is gone"
    if template is not None and claim is not None and claim.owner_uids and job.uid not in claim.owner_uids:
        return (
            "ClaimDeleting",
            f"claim {name} belongs to an older job of this name and goes with it; wait until it is gone",
        )
    if claim is not None and claim.phase == "Lost":
        return "ClaimLost", f"claim {name} has lost its volume; restore it or use another claim"
    modes = modes_of(job, draft.world)
    if not any(mode.startswith("ReadWrite") for mode in modes):
        return (
            "ClaimReadOnly",
            f"claim {name} is {', '.join(modes)}: nothing could be saved; use a ReadWriteMany claim",
        )
    if job.spec.replicas > 1 and not {"ReadWriteMany", "ReadWriteOnce"} & set(modes):
        return (
            "ClaimNotShareable",
            f"claim {name} is {', '.join(modes)}, which {job.spec.replicas} pods cannot share; use a "
            "ReadWriteMany claim, or replicas: 1",
        )
    return None


def source_of(world: World, job: Job) -> Source | None:
    """The other claim that the job mounts; none where the job it resumes from has the same claim."""
    source = world.source
    return None if source is None or source.claim_name == job.claim else source


def resume_trouble(draft: Draft) -> tuple[str, str] | None:
    """Why the claim of ``checkpoint.resumeFrom`` cannot be mounted now: a reason and what to do."""
    job, source = draft.job, source_of(draft.world, draft.job)
    if source is None:
        return None
    name, claim = source.claim_name, source.claim
    draft.wake(draft.now + SOURCE_AGAIN_SECONDS)
    why = ""
    if claim is None and not source.known:
        why = f"there is neither a job {source.job} nor a claim {name} that it has left"
    elif claim is None:
        why = f"claim {name} of job {source.job} is not there"
    elif claim.deleting:
        why = f"claim {name} of job {source.job} is being deleted"
    elif claim.phase != "Bound":
        why = f"claim {name} of job {source.job} has no volume (phase {claim.phase})"
    elif source.user and not _many_readers(claim):
        why = (
            f"claim {name} is {', '.join(claim.modes)} and in use by job {source.user}, until that has ended"
        )
    elif job.spec.replicas > 1 and set(claim.modes) == {"ReadWriteOncePod"}:
        why = f"claim {name} is ReadWriteOncePod, which {job.spec.replicas} pods cannot share"
    if not why:
        return None
    return (
        "ResumeClaimUnavailable",
        f"checkpoint.resumeFrom: {why}; mend that, or remove resumeFrom if this job need not start from there",
    )


def _many_readers(claim: Claim) -> bool:
    return bool({"ReadWriteMany", "ReadOnlyMany"} & set(claim.modes))


def modes_of(job: Job, world: World) -> Sequence[str]:
    """The access modes of the checkpoint claim, or those that it will be made with."""
    template = job.spec.checkpoint.claim_template
    if world.claim is not None:
        return world.claim.modes
    return template.access_modes if template is not None else ()


def needs_one_node(job: Job, world: World) -> bool:
    """Whether all pods must be on one node: a ReadWriteOnce volume is attached to one at a time."""
    source = source_of(world, job)
    apart = "ReadWriteMany" in modes_of(job, world) and (
        source is None or source.claim is None or _many_readers(source.claim)
    )
    return job.spec.replicas > 1 and not apart


def volumes_of(world: World, job: Job) -> list[str]:
    """Names of the PersistentVolumes that the job's pods mount for their checkpoints."""
    source = source_of(world, job)
    claims = (world.claim, source.claim if source else None)
    return [claim.volume for claim in claims if claim is not None and claim.volume]


def attachable(draft: Draft) -> tuple[Terms, ...]:
    """To which nodes the volumes of the job's claims can be attached, as zonal and local ones say.

    Asks for what is not known yet.
    """
    names, known = volumes_of(draft.world, draft.job), draft.world.volumes
    if any(name not in known for name in names):
        draft.asks.add(Ask.VOLUMES)
        return ()
    return tuple(known[name] for name in names if known[name])


def _single(job: Job, world: World) -> str:
    source = source_of(world, job)
    own = "ReadWriteMany" not in modes_of(job, world)
    return job.claim if own or source is None else source.claim_name


def never_on_one_node(draft: Draft, pools: Sequence[str]) -> tuple[str, str] | None:
    """Why a gang that needs one node will never fit on one, however free: of ``pools`` no node is large enough."""
    job, world = draft.job, draft.world
    if not needs_one_node(job, world):
        return None
    largest = 0
    for pool in (pool for name in pools if (pool := world.pools.get(name)) is not None):
        need = gpus_per_pod(job.spec.template.spec, pool.spec.gpu_resource) * job.spec.replicas
        sizes = [
            node.capacity.get(pool.spec.gpu_resource, 0)
            for node in world.nodes.values()
            if belongs(node, pool)
        ]
        # Where there is no node yet, nobody knows how large one will be.
        if not sizes or max(sizes) >= need:
            return None
        largest = max(largest, *sizes)
    if not largest:
        return None
    return (
        "ClaimNotShareable",
        f"a ReadWriteOnce claim ({_single(job, world)}) is mounted, so all {job.spec.replicas} pods must be on one "
        f"node, and the largest node of the pools has {largest} GPUs; use a ReadWriteMany claim, or fewer replicas",
    )
