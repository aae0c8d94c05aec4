"""What an attempt that came to nothing leaves behind for the next one: streaks, and machines to keep off. Pure."""

from spot_training.control.draft import Draft, moment
from spot_training.control.policies.avoid import BLAMING, strike
from spot_training.control.policies.backoff import HEALTHY_SECONDS


def ran_long(draft: Draft) -> bool:
    """Whether the attempt ran long enough for capacity to be called stable; a save alone says nothing of that."""
    running = moment(draft.current.running_at)
    told = moment(draft.current.stop.at) if draft.current.stop else None
    return running is not None and (told or draft.now) - running >= HEALTHY_SECONDS


def late_pools(draft: Draft) -> list[str]:
    """The pools whose pods had not started when the attempt ended because its gang was not whole in time."""
    current, pods = draft.current, draft.pods()
    if current.end is None or current.end.reason != "ProvisionTimeout":
        return []
    late = {
        current.pool_of(index)
        for index in range(current.replicas or draft.job.spec.replicas)
        if index not in pods or pods[index].started_at is None
    }
    return sorted(late) or [current.pool]


def healthy(draft: Draft) -> bool:
    """Whether the attempt ran long enough, or saved, so that the program's trouble before it is over."""
    started = moment(draft.current.started_at)
    saved = moment(draft.status.checkpoint.time) if draft.status.checkpoint else None
    return ran_long(draft) or (started is not None and saved is not None and saved > started)


def unstarted_streak(draft: Draft, reason: str) -> int:
    """Count an attempt that did not come to run; how many of them in a row the backoff is for.

    A gang that was not whole in time tries every pool once before it waits.
    """
    if reason == "SpecChanged":
        draft.set(start_streak=0)
        return 0
    streak = 1 if draft.current.running_at else draft.status.start_streak + 1
    draft.set(start_streak=streak)
    if reason not in ("ProvisionTimeout", "NodeLeft"):
        return streak
    return streak - max(1, len(draft.job.spec.pools or draft.world.pools))


def note_end(draft: Draft) -> None:
    """Remember the machine on which the attempt failed; a second time there, keep off it for a while."""
    current, end = draft.current, draft.current.end
    if current.running_at is not None and draft.status.start_streak:
        draft.set(start_streak=0)
    if end is None or not (end.cls == "Failure" or end.reason in BLAMING):
        return
    name = current.stop.node if current.stop else None
    ran = next((ref.uid for ref in current.nodes if ref.name == name), None)
    node = draft.world.nodes.get(name or "")
    uid = ran or (node.uid if node else None)
    if name is None or uid is None:
        return
    made = strike(draft.status.suspect_nodes, name, uid, end.reason, draft.now)
    draft.set(suspect_nodes=made)
    if made[-1].avoided_until:
        message = (
            f"{made[-1].failures} attempts have failed on node {name}, the last: {end.reason}; avoided until "
        )
        draft.tell("NodeAvoided", f"{message}{made[-1].avoided_until}", type_="Warning")
