"""A checkpoint claim that is full: what is remembered of it, what is said, and when it is tried again. Pure.

The library says so when its program ends. To start another attempt at once would train what cannot be saved either, so
the job waits: until the claim has grown or the job is edited (a lower ``keep``), and for an ever longer while at the
most, since somebody may have made room in a way that nobody can see.
"""

from spot_training.api.status import FullClaim
from spot_training.control import conditions
from spot_training.control.draft import Draft
from spot_training.control.setbacks import saved_anew

REASON = "ClaimFull"


def note_full(draft: Draft) -> bool:
    """Whether the attempt that has ended found its claim full; remembers that, and forgets it after one that saved."""
    known, claim = draft.status.full_claim, draft.world.claim
    saved, end = saved_anew(draft), draft.current.end
    cls = end.cls if end is not None else ""
    told = any(pod.report is not None and pod.report.volume_full for pod in draft.pods().values())
    if cls == "Completed" or not (told or cls == "Blocked"):
        if saved and known is not None:
            draft.set(full_claim=None)
        return False
    made = FullClaim(
        at=draft.stamp(),
        times=1 if known is None or saved else known.times + 1,
        uid=claim.uid if claim else None,
        capacity=(claim.capacity or None) if claim else None,
        generation=draft.job.generation,
    )
    draft.set(full_claim=made)
    message = _message(draft, made)
    draft.condition("ClaimReady", False, REASON, message)
    draft.tell(REASON, message, type_="Warning")
    return True


def release(draft: Draft) -> None:
    """End the wait for room where somebody has done something about it."""
    known, claim = draft.status.full_claim, draft.world.claim
    if known is None or not _waits(draft):
        return
    if claim is not None and (claim.uid, claim.capacity or None) != (known.uid, known.capacity):
        why = f"claim {draft.job.claim} has {claim.capacity or 'another volume'} now"
    elif draft.job.generation != known.generation:
        why = "the job was edited"
    else:
        return
    draft.set(full_claim=None, next_try_at=None)
    draft.tell("ClaimTriedAgain", f"Waiting for room on claim {draft.job.claim} no longer: {why}")


def why_waiting(draft: Draft) -> tuple[str, str] | None:
    """The reason and a sentence, where the job waits for room on its claim."""
    if draft.status.full_claim is None or not _waits(draft):
        return None
    message = _message(draft, draft.status.full_claim)
    until = f"next try at {draft.status.next_try_at}, or when the claim has grown or the job is edited"
    return REASON, f"{message}; {until}"


def note_tried(draft: Draft) -> None:
    """The claim can be mounted, and is not waited for any more."""
    if not conditions.find(draft.status.conditions, "ClaimReady"):
        return
    known = draft.status.full_claim
    if known is None:
        draft.condition("ClaimReady", True, "ClaimReady", f"claim {draft.job.claim}")
    else:
        message = f"claim {draft.job.claim} was full at {known.at}, and is tried again"
        draft.condition("ClaimReady", True, "TriedAgain", message)


def _waits(draft: Draft) -> bool:
    held = conditions.find(draft.status.conditions, "ClaimReady")
    return held is not None and (held.status, held.reason) == ("False", REASON)


def _message(draft: Draft, full: FullClaim) -> str:
    size = f" ({full.capacity})" if full.capacity else ""
    step = draft.status.checkpoint.step if draft.status.checkpoint else None
    newest = (
        "no checkpoint could be saved" if step is None else f"the newest checkpoint is that of step {step}"
    )
    return (
        f"claim {draft.job.claim}{size} is full, {newest}: enlarge the claim, or have the program keep fewer "
        "checkpoints (keep and keep_every_steps of Training; there must be room for one more than are kept), or "
        "remove what else is there"
    )
