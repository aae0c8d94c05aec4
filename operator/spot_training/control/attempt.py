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
    UndecidedExit,
)
from spot_training.control import conditions, ondemand, spending
from spot_training.control.draft import Draft, moment
from spot_training.control.losses import note_report
from spot_training.control.policies.classify import (
    RETRYABLE,
    Case,
    Judgement,
    classify,
    undecided,
)
from spot_training.control.policies.fate import Fate
from spot_training.control.spotagain import consider_spot
from spot_training.control.starting import START_TROUBLES
from spot_training.control.stopped import all_stopped, fates_of, ranks
from spot_training.control.stopping import notices_of, stop_attempt, stop_for_notices, tighten
from spot_training.control.undecided import settle_undecided
from spot_training.control.world import Ask, Pod

MAX_NODES_TOLD = 16


def observe(draft: Draft) -> None:
    """Bring the draft's open attempt up to what its pods and nodes show."""
    pods = draft.pods()
    _note_progress(draft, pods)
    _note_nodes(draft, pods)
    _note_admission(draft, pods)
    _note_completed(draft, pods)
    if set(draft.current.completed) >= set(ranks(draft, pods)):
        _fold_report(draft, pods)
        _end(draft, "Completed", "Completed", "all ranks ended with exit code 0")
        return
    _note_stop(draft, pods)
    _note_nodes(draft, pods)
    settle_undecided(draft)
    _fold_report(draft, pods)
    stop = draft.current.stop
    if draft.asks or stop is None or stop.cls is None:
        return
    if all_stopped(draft, pods) and spending.known_to_end(draft, pods):
        _end(draft, stop.cls, stop.cause, stop.message)


def _note_nodes(draft: Draft, pods: dict[int, Pod]) -> None:
    """Remember which machine each rank runs on, once all are bound or one matters."""
    current = draft.current
    known = {ref.index for ref in current.nodes}
    bound = [pod for pod in pods.values() if pod.node and pod.index not in known]
    whole = len(bound) + len(known) == draft.job.replicas
    at_once = bool(whole or current.started_at or current.stop)
    bound = [pod for pod in bound if at_once or spending.is_paid(current, pod.index)]
    if not bound:
        return
    made = [
        AttemptNode(index=pod.index, name=pod.node, uid=node.uid, **spending.machine(draft, pod.index, node))
        for pod in bound
        if (node := draft.node_of(pod)) is not None
    ]
    if made:
        draft.set_current(nodes=sorted([*current.nodes, *made], key=lambda ref: ref.index))


def _note_admission(draft: Draft, pods: dict[int, Pod]) -> None:
    """Scheduling gates, as of a queue, and when the last of them has gone: until then no node is looked for."""
    current = draft.current
    if current.admitted_at or current.running_at or current.stop:
        return
    if any(pod.gated for pod in pods.values()):
        if not current.gated:
            draft.set_current(gated=True)
    elif (current.gated or current.queue) and len(pods) >= draft.job.replicas:
        draft.set_current(admitted_at=draft.stamp())
        if current.gated:
            draft.tell(
                "Admitted", f"Attempt {current.attempt} may be scheduled: its pods have no gate any more"
            )


def _note_progress(draft: Draft, pods: dict[int, Pod]) -> None:
    """Starts, the whole gang running, and what the programs report."""
    current = draft.current
    starts = [pod.started_at for pod in pods.values() if pod.started_at is not None]
    if starts and current.started_at is None:
        draft.set_current(started_at=_possible(draft, min(starts)))
        if draft.status.start_time is None:
            draft.set(start_time=draft.current.started_at)
    going = sum(1 for pod in pods.values() if pod.started_at is not None)
    if going == draft.job.replicas and current.running_at is None and current.stop is None:
        draft.set_current(running_at=_possible(draft, max(starts)))
        where = ", ".join(sorted({pod.node for pod in pods.values()})[:8])
        draft.tell(
            "Running", f"Attempt {current.attempt} runs on {where} (pool {' and '.join(current.pools)})"
        )
        nodes = sorted({pod.node for pod in pods.values()})[:MAX_NODES_TOLD]
        draft.record_return(resumed_at=draft.current.running_at, recreated_nodes=nodes)


def _possible(draft: Draft, at: float) -> str:
    """A time of a node's clock, which may be wrong: a pod started after its attempt was opened, and before now."""
    return draft.stamp(min(max(at, moment(draft.current.opened_at) or 0.0), draft.now))


def _fold_report(draft: Draft, pods: dict[int, Pod]) -> None:
    """Take over what the first rank that has said anything reports."""
    report = next((pods[index].report for index in sorted(pods) if pods[index].report is not None), None)
    if report is None:
        return
    note_report(draft, report)
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
        draft.record_return(resumed_step=report.resumed_step)


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
    notices = notices_of(draft, pods)
    if draft.current.stop is not None:
        tighten(draft, notices)
        return
    if notices:
        stop_for_notices(draft, notices)
    elif draft.job.spec.suspend:
        stop_attempt(draft, "Suspended", "Suspended", "spec.suspend is true")
    elif draft.job.replicas != draft.job.spec.replicas:
        # The user suspended, edited and resumed the job before anybody saw it suspended.
        message = f"spec.replicas is {draft.job.spec.replicas}, and the attempt has {draft.job.replicas} pods"
        stop_attempt(draft, "Resized", "Suspended", message)
    elif past_deadline(draft):
        stop_attempt(
            draft, "DeadlineExceeded", "Cancelled", "spec.deadlineSeconds have passed since the first start"
        )
    elif not ondemand.ended_by_budget(draft, pods):
        # Before the ends: a rank that was never made has not gone, though its peers have started.
        _note_refused(draft, pods)
        if draft.current.stop is None:
            _note_ends(draft, pods)
        _note_node_left(draft, pods)
        _note_mended(draft)
        _note_provision_timeout(draft, pods)
        ondemand.watch(draft, pods)
        consider_spot(draft)


def _note_ends(draft: Draft, pods: dict[int, Pod]) -> None:
    """Ranks that ended, vanished, or whose machine did: the first of them decides why the attempt is stopped.

    A disruption anywhere comes before any failure: the ranks that survive it fail for want of their peer.
    """
    current = draft.current
    fates = fates_of(draft, pods)
    retryable = frozenset(draft.job.spec.recovery.retryable_exit_codes or ())
    failed: tuple[int, Pod, Judgement] | None = None
    retried: tuple[int, Pod, Judgement] | None = None
    for index in range(draft.job.replicas):
        if index in current.completed:
            continue
        pod, fate = pods.get(index), fates.get(index)
        lost = fate.why if fate and fate.fate in (Fate.LOST, Fate.GONE) else ""
        if fate is not None and fate.fate is Fate.SILENT:
            draft.wake(fate.changes_at)
        if pod is None or pod.removed:
            # It may have started, and run on, where nobody can say so: then no other may be made in its place.
            known = fate is None or fate.fate is Fate.ALIVE
            if current.started_at is None and known and not spending.may_run_unseen(draft, index, pod):
                continue
            if not draft.world.live:
                draft.asks.add(Ask.LIVE_PODS)
                return
        if pod is None:
            gone = f"the pod of rank {index} is gone, and nobody saw its end"
            judgement = Judgement("Disruption", "NodeLost" if lost else "PodGone", lost or gone)
        elif lost or pod.exit is not None or pod.ended or pod.deleting or pod.removed:
            judgement = classify(Case(pod, False, lost, retryable))
        else:
            continue
        if pod is not None and judgement.cls == "Failure":
            failed = failed or (index, pod, judgement)
            continue
        if pod is not None and judgement.reason == RETRYABLE:
            # A rank may ask for another try because its peer has failed: then that is what counts.
            retried = retried or (index, pod, judgement)
            continue
        _stop_for(draft, index, pod, judgement)
        return
    first = failed or retried
    if first is not None:
        _stop_for_exit(draft, *first)


def _stop_for_exit(draft: Draft, index: int, pod: Pod, judgement: Judgement) -> None:
    """A peer that has gone while nobody watched comes before what its loss has led to."""
    if draft.job.replicas > 1 and not draft.world.live:
        draft.asks.add(Ask.LIVE_PODS)
    else:
        _stop_for(draft, index, pod, judgement)


def _stop_for(draft: Draft, index: int, pod: Pod | None, judgement: Judgement) -> None:
    name = pod.node if pod else next((ref.name for ref in draft.current.nodes if ref.index == index), None)
    where = f" on node {name}" if name else ""
    message = f"rank {index}{where}: {judgement.message}"
    peers = _peers(draft, index)
    if pod is not None and pod.exit is not None and undecided(judgement, pod.exit, peers):
        exit_ = UndecidedExit(
            index=index, exit_code=pod.exit.code, at=draft.stamp(pod.exit.at), reason=judgement.reason
        )
        draft.set_current(undecided=[exit_])
        stop_attempt(draft, "RankExited", None, message, node=name)
        draft.tell(
            "RankExited",
            f"Stopping attempt {draft.current.attempt}: {message}; waiting for the other nodes' Leases to tell "
            "a failure from a lost peer",
            type_="Warning",
        )
        return
    cls: EndClass = "Disruption"
    if judgement.cls in ("Failure", "NotStarted", "Blocked"):
        cls = judgement.cls
    draft.tell(judgement.reason, f"Stopping attempt {draft.current.attempt}: {message}", type_="Warning")
    stop_attempt(draft, judgement.reason, cls, message, node=name)


def _note_refused(draft: Draft, pods: dict[int, Pod]) -> None:
    """The gang cannot be made whole: a quota has room for some pods only, or the API server wants one of its objects
    otherwise. What there is of it is given back, for another gang may need just that.
    """
    current, world = draft.current, draft.world
    whole = all(index in pods for index in range(draft.job.replicas))
    if world.refused != current.attempt or draft.asks or (current.started_at and whole):
        return
    draft.tell(world.refused_as, world.obstacle, type_="Warning")
    stop_attempt(draft, world.refused_as, "NotStarted", world.obstacle)


def _note_node_left(draft: Draft, pods: dict[int, Pod]) -> None:
    """The one node that was chosen for the whole gang takes no pods any more, and not all are there."""
    current = draft.current
    bound = sum(1 for pod in pods.values() if pod.node)
    if not current.node or current.stop is not None or draft.asks or bound >= draft.job.replicas:
        return
    node = draft.world.nodes.get(current.node)
    if node is not None and node.notice is None and node.schedulable:
        return
    why = "is gone" if node is None else "will be taken" if node.notice else "is cordoned"
    message = f"node {current.node}, chosen for all pods, {why}"
    draft.tell("NodeLeft", f"Attempt {current.attempt} gives its pods back: {message}", type_="Warning")
    stop_attempt(draft, "NodeLeft", "NotStarted", message)


def _note_mended(draft: Draft) -> None:
    """The user has edited a job whose pods cannot start: the next ones are made from what it says now."""
    current = draft.current
    if current.stop is not None or current.started_at or draft.asks or current.generation is None:
        return
    if current.generation == draft.job.generation:
        return
    known = conditions.find(draft.status.conditions, "Running")
    if draft.world.obstacle or (known is not None and known.reason in START_TROUBLES):
        message = "the job was edited while its pods could not start"
        draft.tell("SpecChanged", f"Attempt {current.attempt} gives its pods back: {message}")
        stop_attempt(draft, "SpecChanged", "NotStarted", message)


def _note_provision_timeout(draft: Draft, pods: dict[int, Pod]) -> None:
    current = draft.current
    opened = moment(current.admitted_at or current.opened_at)
    if (current.gated or current.queue) and not current.admitted_at:
        return
    if current.running_at is not None or current.stop is not None or opened is None or draft.asks:
        return
    due = opened + draft.job.spec.provision_timeout_seconds
    if draft.now < due:
        draft.wake(due)
        return
    message = (
        f"the gang was not whole after {draft.job.spec.provision_timeout_seconds} s on pool "
        f"{' and '.join(current.pools)}"
    )
    draft.tell(
        "ProvisionTimeout", f"Attempt {current.attempt} gives its pods back: {message}", type_="Warning"
    )
    stuck = next((pod.node for _, pod in sorted(pods.items()) if pod.node and pod.started_at is None), None)
    stop_attempt(draft, "ProvisionTimeout", "NotStarted", message, node=stuck)


def _peers(draft: Draft, index: int) -> list[str]:
    """Names of the other nodes of the gang, without the one of that rank."""
    own = {ref.name for ref in draft.current.nodes if ref.index == index}
    return sorted({ref.name for ref in draft.current.nodes} - own)


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
