"""Whose doing a non-zero exit in a gang was, when that could not be told at once. Pure.

The ranks that survive a silent node loss die within seconds of it, long before anything says so. So the exit is judged
when each other node of the gang has been heard of after it, or is known to be lost.
"""

from collections.abc import Mapping

from spot_training.api.status import AttemptNode, EndClass, UndecidedExit
from spot_training.control.draft import Draft, moment
from spot_training.control.policies.classify import POD_STATUS_REASONS, Case, classify, unheard
from spot_training.control.policies.fate import Fate
from spot_training.control.stopped import fates_of
from spot_training.control.world import Ask

LEASE_POLL_SECONDS = 1.0
NO_LEASE_SECONDS = 120.0
"""A node that has no Lease and is called ready for so long tells of itself in another way: it is alive."""
UNDECIDED_SECONDS = 300.0
"""A node that has not renewed its Lease for so long is lost, though nobody has said so."""


def settle_undecided(draft: Draft) -> None:
    """Judge a non-zero exit: another rank's machine was taken or lost, or all of them are alive."""
    current, stop = draft.current, draft.current.stop
    if stop is None or stop.cls is not None or not current.undecided:
        return
    exit_ = current.undecided[0]
    known = _known_doing(draft)
    if known is not None:
        _decide(draft, *known)
        return
    own = {ref.name for ref in current.nodes if ref.index == exit_.index}
    peers = list(dict.fromkeys(ref.name for ref in current.nodes if ref.name not in own))
    renewals = draft.world.renewals
    if renewals is None and peers:
        draft.asks.add(Ask.LEASES)
        return
    silent = _unheard(draft, exit_, peers, renewals or {})
    waited = draft.now - (moment(stop.at) or 0.0)
    if waited >= NO_LEASE_SECONDS:
        silent = [name for name in silent if name in (renewals or {})]
    if not silent:
        _decide(draft, "Failure", exit_.reason, stop.message)
    elif waited >= UNDECIDED_SECONDS:
        _record_lost(draft, next(ref for ref in current.nodes if ref.name == silent[0]))
        why = f"{silent[0]} is called ready, and has not renewed its Lease for {int(waited)} s"
        _decide(draft, "Disruption", "NodeLost", f"a peer's machine was lost: node {why}")
    else:
        others = f" and {len(silent) - 1} others" if len(silent) > 1 else ""
        draft.why = (
            "Stopping",
            f"waiting until node {silent[0]}{others} have renewed their Leases, or are known to be lost, to tell "
            "a failure from a lost peer",
        )
        draft.wake(draft.now + LEASE_POLL_SECONDS)


def _record_lost(draft: Draft, ref: AttemptNode) -> None:
    attempt, pool = draft.current.attempt, draft.current.pool_of(ref.index)
    draft.record(attempt, node=ref.name, lost_uid=ref.uid, pool=pool)


def _known_doing(draft: Draft) -> tuple[EndClass, str, str] | None:
    """What is known by now to have happened to a rank or a machine of the gang: class, cause and a sentence."""
    pods = draft.pods()
    for pod in pods.values():
        why = classify(Case(pod, False))
        # That it is being deleted says nothing: the stop has done that.
        sure = pod.disruption or pod.status_reason in POD_STATUS_REASONS or why.reason == "NodeRestarted"
        if why.cls == "Disruption" and sure:
            return "Disruption", why.reason, f"rank {pod.index}, a peer: {why.message}"
        if why.cls == "Blocked":
            return "Blocked", why.reason, f"rank {pod.index}, a peer: {why.message}"
    fates = fates_of(draft, pods)
    for ref in draft.current.nodes:
        node, fate = draft.world.nodes.get(ref.name), fates.get(ref.index)
        if node is not None and node.notice is not None:
            return "Disruption", "Reclaimed", f"a peer's node, {ref.name}, was being taken"
        if fate is not None and fate.fate is not Fate.ALIVE:
            _record_lost(draft, ref)
            return "Disruption", "NodeLost", f"a peer's machine was lost: {fate.why}"
    return None


def _unheard(draft: Draft, exit_: UndecidedExit, peers: list[str], renewals: Mapping[str, int]) -> list[str]:
    """The peers that have not been heard of since the Leases were first looked at, which is noted here."""
    since = exit_.leases_since
    if since is None and peers:
        since = max(renewals.values(), default=0)
        draft.set_current(undecided=[exit_.model_copy(update={"leases_since": since})])
    return unheard(peers, since or 0, renewals)


def _decide(draft: Draft, cls: EndClass, cause: str, message: str) -> None:
    if draft.current.stop is None:
        return
    made = draft.current.stop.model_copy(update={"cls": cls, "cause": cause, "message": message})
    draft.set_current(stop=made, undecided=[])
    draft.record(draft.current.attempt, reason=cause)
