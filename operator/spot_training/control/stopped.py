"""Whether an attempt that was told to stop has stopped. Pure.

All containers terminated is enough; the pod objects need not be gone. A machine that is merely lost may still write:
then it depends on whether the library's fences keep attempts apart.
"""

from typing import Final

from spot_training.api.status import AttemptNode
from spot_training.control import conditions
from spot_training.control.draft import Draft, moment
from spot_training.control.policies.fate import Fate, Verdict, judge
from spot_training.control.world import Ask, Pod

STUCK_SECONDS: Final = 30.0
"""A container that is not gone so long after it was to be killed hangs in the kernel: in I/O, or in a driver."""
STUCK: Final = "StuckTerminating"
MACHINE_GONE_AFTER_DEADLINE_SECONDS = 5.0
"""So long after a reclamation's deadline nothing can be hoped for from the machine."""


def ranks(draft: Draft, pods: dict[int, Pod]) -> list[int]:
    """The attempt's ranks. ``spec.replicas`` may have been edited since: what was made counts, too."""
    made = {ref.index for ref in draft.current.nodes} | set(pods)
    return sorted(made | set(range(draft.job.replicas)))


def fates_of(draft: Draft, pods: dict[int, Pod]) -> dict[int, Verdict]:
    """What has become of the machine under each rank, where one is known."""
    refs = {ref.index: ref for ref in draft.current.nodes}
    for index, pod in pods.items():
        node = draft.node_of(pod)
        if index in refs:
            continue
        if node is not None:
            refs[index] = AttemptNode(index=index, name=node.name, uid=node.uid)
        elif pod.removed and pod.node:
            # The Node of a pod that is there may not have come yet; that of one that has gone, has gone with it.
            refs[index] = AttemptNode(index=index, name=pod.node, uid="")
    recovery = draft.job.spec.recovery
    return {
        index: judge(ref, draft.world, draft.pool_of(index), recovery, draft.now)
        for index, ref in refs.items()
    }


def all_stopped(draft: Draft, pods: dict[int, Pod]) -> bool:
    """Whether no container of the attempt can write any more, or none that does will ever be read.

    Sets the reason for waiting, and when to look again, where it is not so.
    """
    fates = fates_of(draft, pods)
    for index in ranks(draft, pods):
        if index in draft.current.completed:
            continue
        if index not in pods and not draft.world.live:
            # The answer to its creation may have been lost: it may be there, and not in the cache yet.
            draft.asks.add(Ask.LIVE_PODS)
            return False
        why = _still_runs(draft, pods.get(index), fates.get(index))
        if why:
            draft.why = ("Stopping", f"rank {index}: {why}")
            return False
    return True


def _still_runs(draft: Draft, pod: Pod | None, fate: Verdict | None) -> str:
    """Why the rank's containers may still run, or an empty string."""
    present = pod is not None and not pod.removed
    if pod is not None and (pod.ended or (pod.deleting and not pod.node)):
        # What is being deleted is bound to no node any more, however long a finalizer keeps it.
        return ""
    if fate is None:
        return "its pod is not bound and not deleted yet" if present else ""
    if fate.fate is Fate.GONE or (fate.fate is Fate.ALIVE and not present):
        return ""
    fenced = draft.job.spec.checkpoint.writer == "Library"
    deadline = moment(draft.current.stop.deadline) if draft.current.stop else None
    if fenced and (fate.fate is Fate.LOST or _taken(draft, pod, fate, deadline)):
        return ""
    if fate.fate is Fate.ALIVE:
        return _terminating(draft, pod, fenced)
    if fenced or fate.fate is Fate.SILENT:
        draft.wake(fate.changes_at)
    since = (
        fate.since
        if fate.since is not None
        else moment(draft.current.stop.at if draft.current.stop else None)
    )
    if not fenced and since is not None:
        assumed = since + draft.job.spec.recovery.assume_gone_after_seconds
        if draft.now >= assumed:
            return ""
        draft.wake(assumed)
        return (
            f"{fate.why}; the program's attempts cannot be kept apart (checkpoint.writer: Other), so recovery waits "
            f"until {draft.stamp(assumed)} or until the machine is known to be gone (taint "
            "node.kubernetes.io/out-of-service)"
        )
    return fate.why


def _terminating(draft: Draft, pod: Pod | None, fenced: bool) -> str:
    """Why a pod that is there on a machine that answers is waited for, or an empty string."""
    if pod is None or pod.kill_at is None:
        return "its containers are still terminating"
    killed = draft.stamp(pod.kill_at)
    if not is_stuck(pod, draft.now):
        draft.wake(pod.kill_at + STUCK_SECONDS)
        return f"its containers are still terminating, and are killed at {killed} at the latest"
    if not draft.world.live:
        # On the word of a cache no node is avoided, and nobody is sent to look after it.
        draft.asks.add(Ask.LIVE_PODS)
    if fenced:
        return ""
    message = (
        f"the containers of pod {pod.name} on node {pod.node} were to be killed at {killed} and have not ended; the "
        "program's attempts cannot be kept apart (checkpoint.writer: Other), so recovery waits until they have: when "
        "you know that nothing of them runs any more, delete the pod by force (kubectl -n "
        f"{draft.job.namespace} delete pod {pod.name} --force --grace-period=0), or stop the machine and taint its "
        "node node.kubernetes.io/out-of-service=:NoExecute"
    )
    known = conditions.find(draft.status.conditions, "Running")
    if known is None or message not in known.message:
        draft.tell(STUCK, message, type_="Warning")
    return message


def is_stuck(pod: Pod, now: float) -> bool:
    """Whether the pod should be gone for long, and is not: SIGKILL does not end what hangs in the kernel."""
    overdue = pod.kill_at is not None and now >= pod.kill_at + STUCK_SECONDS
    return overdue and pod.node != "" and not pod.ended and not pod.removed


def _taken(draft: Draft, pod: Pod | None, fate: Verdict, deadline: float | None) -> bool:
    """Whether a reclaimed machine is past its time: silent at its deadline, or a little after it anyhow."""
    node = draft.node_of(pod) if pod else None
    if deadline is None or node is None or node.notice is None:
        return False
    patience = 0.0 if fate.fate is Fate.SILENT else MACHINE_GONE_AFTER_DEADLINE_SECONDS
    draft.wake(deadline + patience)
    return draft.now >= deadline + patience
