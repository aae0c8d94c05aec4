"""What to do about one job: ``plan(job, world, now)``, pure and level-triggered.

The same job, world and time give the same plan, whoever asks and however often. The plan is one new status; what
is to be created and deleted follows from the status once it is written (see :mod:`spot_training.control.act`), so
a stale view fails at the write and has done nothing.
"""

from dataclasses import replace

from spot_training.api.status import MAX_PREFERRED, Current, End
from spot_training.api.times import format_time
from spot_training.control import apart, conditions, ondemand, paying, spending
from spot_training.control.attempt import observe, past_deadline
from spot_training.control.claims import (
    NEXT_TRY,
    attachable,
    claim_trouble,
    never_on_one_node,
    resume_trouble,
    source_of,
)
from spot_training.control.draft import Draft, Plan, moment
from spot_training.control.fullclaim import note_full, note_tried, release, why_waiting
from spot_training.control.losses import count_lost
from spot_training.control.policies.affinity import HOSTNAME
from spot_training.control.policies.avoid import avoided
from spot_training.control.policies.demand import USUAL_INTERVAL_SECONDS, Choice
from spot_training.control.setbacks import (
    avoid_pool,
    backing_off,
    count_disruption,
    count_unstarted,
    healthy,
    last_pools,
    note_end,
    remembered_backoffs,
    remembered_demotions,
    retry_after,
    shut_pools,
)
from spot_training.control.starting import QUEUED, starting
from spot_training.control.suitability import note_proven, unsuited
from spot_training.control.world import Ask, Job, Refusal, World

RETRY_REFUSED_SECONDS = 60.0
RETRY_QUOTA_SECONDS = 15.0


def plan(job: Job, world: World, now: float) -> Plan:
    """The plan for the job in this world at this time."""
    draft = Draft(job, world, now)
    if job.deleting:
        return draft.plan()
    if job.finished:
        _wake_for_ttl(draft)
        return draft.plan()
    if job.open_attempt:
        observe(draft)
        spending.note_machines(draft)
        if draft.current.end is not None and not draft.asks:
            _count(draft)
        elif draft.current.stop is None and draft.current.running_at is None:
            # What it reserves depends on its volumes, and whoever has just begun to lead knows none.
            attachable(draft)
    if not draft.asks and draft.status.phase not in ("Succeeded", "Failed"):
        if draft.status.current is None or draft.current.end is not None:
            _next(draft)
        if not draft.asks:
            _summarize(draft)
    if not draft.asks:
        ondemand.settle(draft)
        spending.refresh(draft)
    return draft.plan()


def _wake_for_ttl(draft: Draft) -> None:
    ttl, ended = draft.job.spec.ttl_seconds_after_finished, moment(draft.status.completion_time)
    if ttl is not None and ended is not None:
        draft.wake(ended + ttl)


def _count(draft: Draft) -> None:
    """Count the end of the attempt, and give up where a limit is reached."""
    current, end = draft.current, draft.current.end
    if end is None:
        return
    spending.close(draft)
    count_lost(draft)
    ondemand.note_ended(draft)
    note_end(draft)
    note_proven(draft)
    full = note_full(draft)
    _count_by_class(draft, end)
    if draft.status.phase not in ("Succeeded", "Failed"):
        if full and draft.status.full_claim is not None:
            retry_after(draft, draft.status.full_claim.times, at_least=True)
        draft.tell(
            "AttemptEnded", f"Attempt {current.attempt} ended: {end.cls} ({end.reason}): {end.message}"
        )


def _count_by_class(draft: Draft, end: End) -> None:
    status, recovery = draft.status, draft.job.spec.recovery
    if end.cls == "Completed":
        _finish(draft, True, "Completed", end.message)
    elif end.cls == "Cancelled":
        _finish(draft, False, end.reason, end.message)
    elif end.cls == "Disruption":
        count_disruption(draft, end.reason)
        limit = recovery.max_disruptions
        if limit is not None and draft.status.disruptions > limit:
            message = f"more than {limit} disruptions; the last: {end.message}"
            _finish(draft, False, "MaxDisruptions", message)
    elif (unsuitable := unsuited(draft)) is not None:
        avoid_pool(draft, *unsuitable)
    elif end.cls == "Failure":
        streak = 1 if healthy(draft) else status.failure_streak + 1
        draft.set(failures=status.failures + 1, failure_streak=streak)
        retry_after(draft, streak)
        if draft.status.failures > recovery.max_failures:
            _finish(
                draft,
                False,
                "MaxFailures",
                f"more than {recovery.max_failures} failures; the last: {end.message}",
            )
    elif end.cls == "NotStarted":
        count_unstarted(draft, end.reason)
        if end.reason in ("PodsRefused", "TemplateInvalid"):
            # The next try begins with a dry run, as the first one did.
            draft.condition("TemplateInvalid", True, end.reason, end.message)


def _finish(draft: Draft, succeeded: bool, reason: str, message: str) -> None:
    """End the job for good. A finished job never gets another pod."""
    draft.set(
        phase="Succeeded" if succeeded else "Failed",
        completion_time=draft.stamp(),
        next_try_at=None,
        next_try_pool=None,
        ready=f"0/{draft.job.spec.replicas}",
        observed_generation=draft.job.generation,
    )
    draft.condition("Completed" if succeeded else "Failed", True, reason, message)
    draft.condition("Running", False, reason, message)
    for passing in ("Recovering", "Suspended", "AgentMissing"):
        if conditions.is_true(draft.status.conditions, passing):
            draft.condition(passing, False, reason, message)
    draft.tell(reason, message, type_="Normal" if succeeded else "Warning")
    _wake_for_ttl(draft)


def _next(draft: Draft) -> None:
    """Open the next attempt, or say what it waits for and until when."""
    spec = draft.job.spec
    if draft.status.next_try_pool is not None:
        # Of one pool it holds nothing back: it is said anew, if that pool is what is waited for.
        draft.set(next_try_at=None, next_try_pool=None)
    if past_deadline(draft):
        _finish(
            draft, False, "DeadlineExceeded", f"{spec.deadline_seconds} s have passed since the first start"
        )
        return
    if spec.suspend:
        draft.why = ("Suspended", "spec.suspend is true; set it to false to go on")
        return
    release(draft)
    due = moment(draft.status.next_try_at)
    if due is not None and draft.now < due:
        draft.wake(due)
        backoff = "BackOff", f"next try at {draft.status.next_try_at}{_after_what(draft)}"
        draft.why = why_waiting(draft) or backoff
        held = conditions.find(draft.status.conditions, "TemplateInvalid")
        refused = held is not None and held.status == "True"
        if not (refused and held is not None and held.observed_generation != draft.job.generation):
            if refused and held is not None:
                draft.why = (held.reason, f"{held.message} (next try at {draft.status.next_try_at})")
            return
    blocked = claim_trouble(draft) or resume_trouble(draft) or apart.trouble(draft)
    if blocked is not None:
        _blocked_by_claim(draft, *blocked)
        return
    note_tried(draft)
    if _accepted(draft):
        _place(draft)


def _after_what(draft: Draft) -> str:
    last = draft.status.current.end if draft.status.current else None
    return f" after {last.reason}: {last.message}" if last else ""


def _blocked_by_claim(draft: Draft, reason: str, message: str) -> None:
    if not _is_false(draft, "ClaimReady", reason):
        draft.tell(reason, message, type_="Warning")
    draft.condition("ClaimReady", False, reason, message)
    draft.why = (reason, f"{message}; {NEXT_TRY.get(reason, 'next try when the claim changes')}")


def _is_false(draft: Draft, type_: str, reason: str) -> bool:
    """Whether the condition says so already: what has been told need not be told again."""
    known = conditions.find(draft.status.conditions, type_)
    return known is not None and (known.status, known.reason) == ("False", reason)


def _accepted(draft: Draft) -> bool:
    """Whether the API server would take pod 0, as a strict dry run says, once for each generation of the job."""
    held = conditions.find(draft.status.conditions, "TemplateInvalid")
    if held is not None and held.status == "False" and held.observed_generation == draft.job.generation:
        return True
    said = draft.world.dry_run
    if said is None:
        draft.asks.add(Ask.DRY_RUN)
        return False
    if not isinstance(said, Refusal):
        draft.condition("TemplateInvalid", False, "Accepted", "the API server accepts the pods")
        draft.set(next_try_at=None, next_try_pool=None, priority=said.priority)
        return True
    wait = RETRY_QUOTA_SECONDS if said.temporary else RETRY_REFUSED_SECONDS
    reason = "PodsRefused" if said.temporary else "TemplateInvalid"
    draft.set(next_try_at=format_time(draft.now + wait), next_try_pool=None)
    draft.wake(draft.now + wait)
    if held is None or held.message != said.message:
        draft.tell(reason, said.message, type_="Warning")
    draft.condition("TemplateInvalid", True, reason, said.message)
    draft.why = (reason, f"{said.message} (next try at {draft.status.next_try_at})")
    return False


def _place(draft: Draft) -> None:
    """Find a pool and open the attempt there."""
    job, status = draft.job, draft.status
    off = avoided(status.suspect_nodes, draft.world.nodes, draft.now)
    wanted = ondemand.request(draft, last_pools(draft))
    if draft.asks:
        return
    shut = shut_pools(draft)
    request = draft.request = replace(
        wanted,
        refused={**wanted.refused, **shut},
        apart=wanted.apart and replace(wanted.apart, refused={**wanted.apart.refused, **shut}),
        late=last_pools(draft, "ProvisionTimeout"),
        avoid=frozenset(off),
        interval=job.spec.checkpoint.interval_seconds or USUAL_INTERVAL_SECONDS,
        priority=draft.status.priority,
    )
    choice = draft.world.choice
    if choice is None or not choice.request.same(request):
        draft.asks.add(Ask.PLACEMENT)
        return
    draft.wake(choice.wake_at)
    if choice.anywhere:
        off = {}
    never = never_on_one_node(draft, list(choice.refused)) if choice.pool is None else None
    if never is not None:
        _blocked_by_claim(draft, *never)
        return
    ondemand.note_search(draft, request, choice)
    if choice.pool is None:
        next_try = _say_next_try(draft, choice)
        if choice.reason == "PoolBackOff":
            draft.why = ("BackOff", f"{next_try}{_after_what(draft)}; {choice.message}")
            return
        changes = "when a pool, a node or a pod changes"
        next_try = f"{next_try}, or {changes}" if next_try else f"next try {changes}"
        draft.why = (choice.reason, f"waiting for capacity; {choice.message}; {next_try}")
        if not _is_false(draft, "CapacityAvailable", choice.reason):
            draft.tell(choice.reason, f"Waiting for capacity; {choice.message}", type_="Warning")
        draft.condition("CapacityAvailable", False, choice.reason, choice.message)
        return
    source = source_of(draft.world, job)
    number = (status.current.attempt if status.current else 0) + 1
    passed = f" (passed over: {choice.message})" if choice.refused else ""
    reason = "Provisioning" if choice.provisioned else "PoolChosen"
    draft.condition("CapacityAvailable", True, reason, choice.chosen)
    terms = paying.terms(draft, draft.world.pools[choice.pool], job.spec.replicas)
    draft.set(
        current=Current(
            attempt=number,
            pool=choice.pool,
            opened_at=draft.stamp(),
            generation=job.generation,
            replicas=job.spec.replicas,
            one_node=request.one_node or None,
            node=choice.node or None,
            terms=terms,
            on_demand=apart.opened(draft, choice),
            queue=job.queue or None,
            avoid=sorted(off),
            preferred=_preferred(draft, choice),
            provisioned=list(choice.provisioned),
            resume_claim=source.claim_name if source else None,
        ),
        next_try_at=None,
        next_try_pool=None,
        demoted_pools=remembered_demotions(draft),
        pool_backoffs=remembered_backoffs(draft),
    )
    ondemand.announce(draft)
    draft.record_return(recreated_at=draft.stamp(), recreated_pool=choice.pool)
    draft.tell(
        "AttemptStarted", f"Attempt {number} opens on pool {' and '.join(draft.current.pools)}{passed}"
    )


def _preferred(draft: Draft, choice: Choice) -> list[str]:
    """The nodes whose room was counted on, as their labels name them; of many those that had least."""
    if choice.node:
        return []
    nodes = [draft.world.nodes.get(name) for name in choice.laid]
    hosts = [node.labels.get(HOSTNAME, "") for node in nodes if node is not None]
    return [host for host in hosts if host][:MAX_PREFERRED]


def _say_next_try(draft: Draft, choice: Choice) -> str:
    """Put into the status which pool is tried again first, and when; in words, or nothing where none backs off."""
    first = next((each for name, each in backing_off(draft).items() if _waits_for(choice, name)), None)
    draft.set(next_try_at=first.next_try_at if first else None, next_try_pool=first.pool if first else None)
    return f"next try at {first.next_try_at} on pool {first.pool}" if first else ""


def _waits_for(choice: Choice, pool: str) -> bool:
    verdict = choice.refused.get(pool)
    return verdict is not None and verdict.reason == "PoolBackOff"


def _summarize(draft: Draft) -> None:
    """Phase, READY and the Running condition: the summary that people see."""
    job, status = draft.job, draft.status
    if status.phase in ("Succeeded", "Failed"):
        return
    current = status.current
    is_open = current is not None and current.end is None
    replicas = (current.replicas if current and is_open else None) or job.spec.replicas
    ready = sum(1 for pod in draft.pods().values() if pod.running and not pod.removed) if is_open else 0
    interrupted = status.disruptions + status.failures > 0
    running = False
    if not is_open or current is None:
        phase = "Suspended" if job.spec.suspend else "Recovering" if interrupted else "Pending"
    elif current.stop is not None:
        phase = "Suspended" if current.stop.cause == "Suspended" else "Recovering"
        reason, message = draft.why if draft.why[0] else ("Stopping", "waiting until the pods have stopped")
        draft.why = (reason, f"{current.stop.cause}: {current.stop.message}; {message}")
    elif current.running_at is not None:
        phase, running = "Running", True
        draft.why = ("Running", f"attempt {current.attempt} runs on pool {' and '.join(current.pools)}")
    else:
        reason, said = starting(draft)
        phase = "Recovering" if interrupted else "Pending" if reason == QUEUED else "Starting"
        behind = f"; {said}" if said else ""
        draft.why = (
            reason,
            f"attempt {current.attempt} starts on pool {' and '.join(current.pools)}{behind}",
        )
    draft.condition("Running", running, draft.why[0] or "Waiting", draft.why[1])
    if phase == "Recovering" or conditions.find(draft.status.conditions, "Recovering"):
        draft.condition("Recovering", phase == "Recovering", draft.why[0] or "Waiting", draft.why[1])
    if job.spec.suspend or conditions.find(draft.status.conditions, "Suspended"):
        draft.condition("Suspended", phase == "Suspended", draft.why[0] or "Waiting", draft.why[1])
    _note_agents(draft)
    draft.set(phase=phase, ready=f"{ready}/{replicas}", observed_generation=job.generation)


def _note_agents(draft: Draft) -> None:
    """Whether every spot node of the attempt has an agent that would see a notice."""
    current = draft.status.current
    if current is None or current.end is not None or current.stop is not None or not current.nodes:
        return
    pool = draft.pool
    if pool is None or pool.spec.capacity_type != "Spot":
        return
    spot = {ref.name for ref in current.nodes if not current.is_apart(ref.index)}
    bare = sorted(name for name in spot if name not in draft.world.agents)
    known = conditions.is_true(draft.status.conditions, "AgentMissing")
    if not bare:
        if known:
            draft.condition(
                "AgentMissing", False, "AgentsReady", "every node of the attempt has a ready agent"
            )
        return
    message = (
        f"no ready agent on {', '.join(bare[:8])}: a reclamation there is seen only when the node is gone; "
        "look at the agent's DaemonSet (is the provider enabled in the chart, does the node bear a spot label?)"
    )
    if not known:
        draft.tell("AgentMissing", message, type_="Warning")
    draft.condition("AgentMissing", True, "NoReadyAgent", message)
