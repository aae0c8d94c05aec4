"""Whether a pool suits the job's program: an image or a driver may fail there before the first step. Pure.

Only where the program has got beyond its start elsewhere is the pool to blame: it is avoided for this job, the
attempt counts as no failure of the program, and later it is tried again. A program that fails where it has run before
fails by itself, so nothing can go on for ever uncounted.
"""

from typing import Final

from spot_training.control.draft import Draft, moment
from spot_training.control.policies.backoff import HEALTHY_SECONDS
from spot_training.control.starting import TROUBLES
from spot_training.control.world import Pod

STARTUP_SECONDS: Final = 300.0
"""A program that says nothing of its steps is taken to be beyond its start after that."""

MAX_PROVEN: Final = 64


def note_proven(draft: Draft) -> None:
    """The attempt that has ended: remember its pools where the program has got beyond its start there."""
    known = draft.status.proven_pools
    new = [pool for pool in draft.current.pools if pool not in known]
    if not new or not _got_going(draft):
        return
    left = [each for each in draft.status.demoted_pools if each.pool not in new or not each.avoid]
    draft.set(proven_pools=[*known, *new][-MAX_PROVEN:], demoted_pools=left)


def unsuited(draft: Draft) -> tuple[str, str] | None:
    """The pool of the attempt that has ended that does not suit the program, and why; None where nothing says so."""
    current, end = draft.current, draft.current.end
    proven = draft.status.proven_pools
    new = [pool for pool in current.pools if pool not in proven]
    if end is None or not new or not proven:
        return None
    if end.cls == "Failure" and not _got_going(draft):
        where, what = new[0], f"the program failed there before its first step ({end.message})"
    elif end.cls == "NotStarted" and (trouble := _trouble(draft, new)):
        where, what = trouble[0], f"the pods did not start there ({trouble[1]})"
    else:
        return None
    return where, f"{what}, and ran on {', '.join(proven[-4:])}"[:1024]


def _got_going(draft: Draft) -> bool:
    current = draft.current
    if any(_stepped(pod) for pod in draft.pods().values()):
        return True
    running, ended = moment(current.running_at), moment(current.stop.at if current.stop else None)
    if running is None:
        return False
    failed = current.end is not None and current.end.cls == "Failure"
    return (ended or draft.now) - running >= (STARTUP_SECONDS if failed else HEALTHY_SECONDS)


def _stepped(pod: Pod) -> bool:
    report = pod.report
    return report is not None and report.step is not None and report.step > (report.resumed_step or 0)


def _trouble(draft: Draft, pools: list[str]) -> tuple[str, str] | None:
    """In which of the pools something kept a pod from starting that is the node's or the image's doing, and what."""
    for pod in draft.pods().values():
        where = draft.current.pool_of(pod.index)
        if where not in pools:
            continue
        reason, _ = TROUBLES.get(pod.trouble.partition(":")[0], ("", ""))
        if reason in ("ImagePullFailed", "ContainerStartFailed", "SandboxFailed"):
            return where, pod.trouble
    return None
