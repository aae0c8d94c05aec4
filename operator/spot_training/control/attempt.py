"""What has become of the open attempt: started, running, to be stopped, ended. Pure.

A stop is decided here and written before the first pod is deleted; it cannot be taken back. The attempt ends
when its end is judged and none of its containers can run any more, or, where the library keeps attempts apart
by fences, when the machine under the rest is lost.
"""

from spot_training.api.status import (
    AttemptNode,
    CheckpointStatus,
    End,
    EndClass,
    Interruption,
    Stop,
    UndecidedExit,
)
from spot_training.control.draft import Draft, moment
from spot_training.control.policies.classify import (
    POD_STATUS_REASONS,
    Case,
    Judgement,
    classify,
    settle,
    undecided,
)
from spot_training.control.policies.fate import Fate, Verdict, judge
from spot_training.control.world import Ask, Notice, Pod

LEASE_POLL_SECONDS = 1.0
MAX_NODES_TOLD = 16
MACHINE_GONE_AFTER_DEADLINE_SECONDS = 5.0
"""So long after a reclamation's deadline nothing can be hoped for from the machine."""


def observe(draft: Draft) -> None:
    """Bring the draft's open attempt up to what its pods and nodes show."""
    pods = draft.pods()
    _note_progress(draft, pods)
    _note_nodes(draft, pods)
    _note_completed(draft, pods)
    if set(draft.current.completed) >= set(_ranks(draft, pods)):
        _fold_report(draft, pods)
        _end(draft, "Completed", "Completed", "all ranks ended with exit code 0")
        return
    _note_stop(draft, pods)
    _note_nodes(draft, pods)
    _settle_undecided(draft)
    _fold_report(draft, pods)
    stop = draft.current.stop
    if not draft.asks and stop is not None and stop.cls is not None and _all_stopped(draft, pods):
        _end(draft, stop.cls, stop.cause, stop.message)


def _ranks(draft: Draft, pods: dict[int, Pod]) -> list[int]:
    """The attempt's ranks. ``spec.replicas`` may have been edited since: what was made counts, too."""
    made = {ref.index for ref in draft.current.nodes} | set(pods)
    return sorted(made | set(range(draft.job.spec.replicas)))


def _note_nodes(draft: Draft, pods: dict[int, Pod]) -> None:
    """Remember which machine each rank runs on, once all are bound or one matters."""
    current = draft.current
    known = {ref.index for ref in current.nodes}
    bound = [pod for pod in pods.values() if pod.node and pod.index not in known]
    if not bound or not (
        len(bound) + len(known) == draft.job.spec.replicas or current.started_at or current.stop
    ):
        return
    price = draft.pool.spec.price_per_node_hour if draft.pool else None
    made = [
        AttemptNode(
            index=pod.index,
            name=pod.node,
            uid=node.uid,
            price=price,
            start=draft.stamp(pod.started_at) if pod.started_at else None,
        )
        for pod in bound
        if (node := draft.node_of(pod)) is not None
    ]
    if made:
        draft.set_current(nodes=sorted([*current.nodes, *made], key=lambda ref: ref.index))


def _note_progress(draft: Draft, pods: dict[int, Pod]) -> None:
    """Starts, the whole gang running, and what the programs report."""
    current = draft.current
    starts = [pod.started_at for pod in pods.values() if pod.started_at is not None]
    if starts and current.started_at is None:
        draft.set_current(started_at=draft.stamp(min(starts)))
        if draft.status.start_time is None:
            draft.set(start_time=draft.stamp(min(starts)))
    going = sum(1 for pod in pods.values() if pod.started_at is not None)
    if going == draft.job.spec.replicas and current.running_at is None and current.stop is None:
        draft.set_current(running_at=draft.stamp(max(starts)))
        where = ", ".join(sorted({pod.node for pod in pods.values()})[:8])
        draft.tell("Running", f"Attempt {current.attempt} runs on {where} (pool {current.pool})")
        nodes = sorted({pod.node for pod in pods.values()})[:MAX_NODES_TOLD]
        draft.record(current.attempt - 1, resumed_at=draft.stamp(max(starts)), recreated_nodes=nodes)


def _fold_report(draft: Draft, pods: dict[int, Pod]) -> None:
    """Take over what the first rank that has said anything reports."""
    report = next((pods[index].report for index in sorted(pods) if pods[index].report is not None), None)
    if report is None:
        return
    if report.step is not None:
        draft.set(step=report.step)
    if report.total_steps is not None:
        draft.set(total_steps=report.total_steps)
    if report.extras:
        draft.set(extras=dict(report.extras))
    if report.checkpoint_step is not None:
        time = draft.stamp(report.checkpoint_time) if report.checkpoint_time is not None else None
        before = draft.status.checkpoint
        made = CheckpointStatus(step=report.checkpoint_step, time=time)
        if before != made:
            draft.set(checkpoint=made)
            draft.tell(
                "CheckpointSaved", f"Attempt {draft.current.attempt} saved step {report.checkpoint_step}"
            )
        draft.record(draft.current.attempt, saved_step=report.checkpoint_step, saved_at=time)
    if report.step is not None:
        draft.record(draft.current.attempt, reached_step=report.step)
    if report.resumed_step is not None:
        draft.record(draft.current.attempt - 1, resumed_step=report.resumed_step)


def _note_completed(draft: Draft, pods: dict[int, Pod]) -> None:
    """Remember the ranks that are done, so that nothing that later happens to their pods matters."""
    done = set(draft.current.completed)
    told = draft.current.stop is not None
    for index, pod in pods.items():
        if pod.exit is not None and classify(Case(pod, told)).cls == "Completed":
            done.add(index)
    if len(done) > len(draft.current.completed):
        draft.set_current(completed=sorted(done))


def _note_stop(draft: Draft, pods: dict[int, Pod]) -> None:
    """Decide to stop, or tighten a stop that was decided."""
    notices = _notices(draft, pods)
    if draft.current.stop is not None:
        _tighten(draft, notices)
        return
    if notices:
        _stop_for_notices(draft, notices)
    elif draft.job.spec.suspend:
        _stop(draft, "Suspended", "Suspended", "spec.suspend is true")
    elif past_deadline(draft):
        _stop(
            draft, "DeadlineExceeded", "Cancelled", "spec.deadlineSeconds have passed since the first start"
        )
    else:
        _note_ends(draft, pods)
        _note_provision_timeout(draft)


def _notices(draft: Draft, pods: dict[int, Pod]) -> list[tuple[str, Notice]]:
    """The notices on the nodes of the gang's unfinished ranks, earliest first, with the nodes' names."""
    found: dict[str, Notice] = {}
    for ref in draft.current.nodes:
        node = draft.world.nodes.get(ref.name)
        if ref.index not in draft.current.completed and node and node.uid == ref.uid and node.notice:
            found[node.name] = node.notice
    for pod in pods.values():
        node = draft.node_of(pod)
        if pod.index not in draft.current.completed and node and node.notice and not pod.removed:
            found[node.name] = node.notice
    return sorted(found.items(), key=lambda item: (item[1].deadline or float("inf"), item[0]))


def _deadline(draft: Draft, notice: Notice, seen: float) -> float:
    """When the machine goes: as the notice says, else the pool's usual notice after it was first seen."""
    if notice.deadline is not None:
        return notice.deadline
    return (notice.noticed_at or notice.marked_at or seen) + draft.notice_seconds()


def _stop_for_notices(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    name, notice = notices[0]
    deadline = min(_deadline(draft, each, draft.now) for _, each in notices)
    message = f"node {name} will be taken at {draft.stamp(deadline)} ({notice.source or 'unknown'} notice)"
    left = max(0, int(deadline - draft.now))
    draft.tell(
        "Reclaimed", f"Stopping attempt {draft.current.attempt}: {message}, {left} s left", type_="Warning"
    )
    _stop(
        draft, "Reclaimed", "Disruption", message, deadline, [each.id for _, each in notices if each.id], name
    )


def _tighten(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    """Notices that come after the stop: the deadline only tightens, and a nameless disruption gets its name."""
    stop = draft.current.stop
    if stop is None or not notices:
        return
    deadline = min(_deadline(draft, each, moment(stop.at) or draft.now) for _, each in notices)
    known = moment(stop.deadline)
    if known is not None:
        deadline = min(deadline, known)
    ids = [*stop.notice_ids, *(each.id for _, each in notices if each.id and each.id not in stop.notice_ids)][
        :64
    ]
    named = stop.cls == "Disruption" and stop.cause != "Reclaimed"
    made = stop.model_copy(update={"deadline": draft.stamp(deadline), "notice_ids": ids})
    if named:
        name, notice = notices[0]
        message = (
            f"node {name} will be taken at {draft.stamp(deadline)} ({notice.source or 'unknown'} notice)"
        )
        made = made.model_copy(update={"cause": "Reclaimed", "message": message})
    if made != stop:
        draft.set_current(stop=made)
        if named:
            draft.record(draft.current.attempt, reason="Reclaimed")
        _record_notice(draft, notices)


def _stop(
    draft: Draft,
    cause: str,
    cls: EndClass | None,
    message: str,
    deadline: float | None = None,
    notice_ids: list[str] | None = None,
    node: str | None = None,
) -> None:
    draft.set_current(
        stop=Stop(
            cause=cause,
            cls=cls,
            message=message,
            at=draft.stamp(),
            deadline=draft.stamp(deadline) if deadline is not None else None,
            notice_ids=(notice_ids or [])[:64],
        )
    )
    if cls in ("Disruption", "Failure", None):
        current = draft.current
        draft.record_new(
            Interruption(
                attempt=current.attempt, reason=cause, node=node, pool=current.pool, stopped_at=draft.stamp()
            )
        )
        _record_notice(draft, _notices(draft, draft.pods()))


def _record_notice(draft: Draft, notices: list[tuple[str, Notice]]) -> None:
    if not notices:
        return
    name, notice = notices[0]
    draft.record(
        draft.current.attempt,
        node=name,
        notice_id=notice.id or None,
        noticed_at=draft.stamp(notice.noticed_at) if notice.noticed_at is not None else None,
        cordoned_at=draft.stamp(notice.marked_at) if notice.marked_at is not None else None,
        deadline=draft.stamp(notice.deadline) if notice.deadline is not None else None,
    )


def _note_ends(draft: Draft, pods: dict[int, Pod]) -> None:
    """Ranks that ended, vanished, or whose machine did: the first of them decides why the attempt is stopped.

    A disruption anywhere comes before any failure: the ranks that survive it fail for want of their peer.
    """
    current = draft.current
    fates = _fates(draft, pods)
    failed: tuple[int, Pod, Judgement] | None = None
    for index in range(draft.job.spec.replicas):
        if index in current.completed:
            continue
        pod, fate = pods.get(index), fates.get(index)
        lost = fate.why if fate and fate.fate in (Fate.LOST, Fate.GONE) else ""
        if fate is not None and fate.fate is Fate.SILENT:
            draft.wake(fate.changes_at)
        if pod is None or pod.removed:
            if current.started_at is None and not lost:
                continue
            if not draft.world.live:
                draft.asks.add(Ask.LIVE_PODS)
                return
        if pod is None:
            judgement = Judgement(
                "Disruption", "PodGone", f"the pod of rank {index} is gone, and nobody saw its end"
            )
        elif lost or pod.exit is not None or pod.ended or pod.deleting or pod.removed:
            judgement = classify(Case(pod, False, lost))
        else:
            continue
        if pod is not None and judgement.cls == "Failure":
            failed = failed or (index, pod, judgement)
            continue
        _stop_for(draft, index, pod, judgement)
        return
    if failed is not None:
        _stop_for(draft, *failed)


def _stop_for(draft: Draft, index: int, pod: Pod | None, judgement: Judgement) -> None:
    name = pod.node if pod else None
    where = f" on node {name}" if name else ""
    message = f"rank {index}{where}: {judgement.message}"
    peers = _peers(draft, index)
    if pod is not None and pod.exit is not None and undecided(judgement, pod.exit, peers):
        exit_ = UndecidedExit(
            index=index, exit_code=pod.exit.code, at=draft.stamp(pod.exit.at), reason=judgement.reason
        )
        draft.set_current(undecided=[exit_])
        _stop(draft, "RankExited", None, message, node=name)
        draft.tell(
            "RankExited",
            f"Stopping attempt {draft.current.attempt}: {message}; waiting for the other nodes' Leases to tell "
            "a failure from a lost peer",
            type_="Warning",
        )
        return
    cls: EndClass = "Failure" if judgement.cls == "Failure" else "Disruption"
    draft.tell(judgement.reason, f"Stopping attempt {draft.current.attempt}: {message}", type_="Warning")
    _stop(draft, judgement.reason, cls, message, node=name)


def _note_provision_timeout(draft: Draft) -> None:
    current = draft.current
    opened = moment(current.opened_at)
    if current.running_at is not None or current.stop is not None or opened is None or draft.asks:
        return
    due = opened + draft.job.spec.provision_timeout_seconds
    if draft.now < due:
        draft.wake(due)
        return
    message = (
        f"the gang was not whole after {draft.job.spec.provision_timeout_seconds} s on pool {current.pool}"
    )
    draft.tell(
        "ProvisionTimeout", f"Attempt {current.attempt} gives its pods back: {message}", type_="Warning"
    )
    _stop(draft, "ProvisionTimeout", "NotStarted", message)


def _settle_undecided(draft: Draft) -> None:
    """Judge a non-zero exit: another rank's machine was taken or lost, or all of them are alive."""
    current = draft.current
    stop = current.stop
    if stop is None or stop.cls is not None or not current.undecided:
        return
    exit_ = current.undecided[0]
    # Kubelet's times are whole seconds, and zero where it lost the time: what matters is when it was seen.
    exit_at = max(moment(exit_.at) or 0.0, moment(stop.at) or 0.0)
    fates = _fates(draft, draft.pods())
    for pod in draft.pods().values():
        why = classify(Case(pod, False))
        # That it is being deleted says nothing: the stop has done that.
        sure = pod.disruption or pod.status_reason in POD_STATUS_REASONS or why.reason == "NodeRestarted"
        if why.cls == "Disruption" and sure:
            _decide(draft, "Disruption", why.reason, f"rank {pod.index}, a peer: {why.message}")
            return
    peers: list[str] = []
    for ref in current.nodes:
        node = draft.world.nodes.get(ref.name)
        fate = fates.get(ref.index)
        if node is not None and node.notice is not None:
            _decide(draft, "Disruption", "Reclaimed", f"a peer's node, {ref.name}, was being taken")
            return
        if fate is not None and fate.fate is not Fate.ALIVE:
            _decide(draft, "Disruption", "NodeLost", f"a peer's machine was lost: {fate.why}")
            return
        if ref.index != exit_.index and ref.name not in peers:
            peers.append(ref.name)
    own = next((ref.name for ref in current.nodes if ref.index == exit_.index), None)
    peers = [name for name in peers if name != own]
    if draft.world.leases is None and peers:
        draft.asks.add(Ask.LEASES)
    elif settle(exit_at, peers, draft.world.leases or {}):
        _decide(draft, "Failure", exit_.reason, stop.message)
    else:
        draft.wake(draft.now + LEASE_POLL_SECONDS)


def _decide(draft: Draft, cls: EndClass, cause: str, message: str) -> None:
    if draft.current.stop is None:
        return
    made = draft.current.stop.model_copy(update={"cls": cls, "cause": cause, "message": message})
    draft.set_current(stop=made, undecided=[])
    draft.record(draft.current.attempt, reason=cause)


def _peers(draft: Draft, index: int) -> list[str]:
    """Names of the other nodes of the gang, without the one of that rank."""
    own = {ref.name for ref in draft.current.nodes if ref.index == index}
    return sorted({ref.name for ref in draft.current.nodes} - own)


def _fates(draft: Draft, pods: dict[int, Pod]) -> dict[int, Verdict]:
    """What has become of the machine under each rank, where one is known."""
    refs = {ref.index: ref for ref in draft.current.nodes}
    for index, pod in pods.items():
        node = draft.node_of(pod)
        if index not in refs and node is not None:
            refs[index] = AttemptNode(index=index, name=node.name, uid=node.uid)
    recovery = draft.job.spec.recovery
    return {index: judge(ref, draft.world, draft.pool, recovery, draft.now) for index, ref in refs.items()}


def _all_stopped(draft: Draft, pods: dict[int, Pod]) -> bool:
    """Whether no container of the attempt can write any more, or none that does will ever be read.

    Sets the reason for waiting, and when to look again, where it is not so.
    """
    fates = _fates(draft, pods)
    for index in _ranks(draft, pods):
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
    if pod is not None and pod.ended:
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
        return "its containers are still terminating"
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


def _taken(draft: Draft, pod: Pod | None, fate: Verdict, deadline: float | None) -> bool:
    """Whether a reclaimed machine is past its time: silent at its deadline, or a little after it anyhow."""
    node = draft.node_of(pod) if pod else None
    if deadline is None or node is None or node.notice is None:
        return False
    patience = 0.0 if fate.fate is Fate.SILENT else MACHINE_GONE_AFTER_DEADLINE_SECONDS
    draft.wake(deadline + patience)
    return draft.now >= deadline + patience


def _end(draft: Draft, cls: EndClass, reason: str, message: str) -> None:
    """End the attempt; what is to be counted is counted in this very write."""
    end = End(cls=cls, reason=reason, message=message, at=draft.stamp())
    draft.set_current(end=end)
    draft.record(draft.current.attempt, ended_at=end.at)


def past_deadline(draft: Draft) -> bool:
    """Whether the job's own deadline has passed; asks to be woken at it otherwise."""
    limit, start = draft.job.spec.deadline_seconds, moment(draft.status.start_time)
    if limit is None or start is None:
        return False
    draft.wake(start + limit)
    return draft.now >= start + limit
