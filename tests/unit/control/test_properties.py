"""What holds of every plan, whatever the job and the world."""

import dataclasses

from hypothesis import assume, given
from hypothesis import strategies as st

from spot_training.api.status import (
    AttemptNode,
    CheckpointStatus,
    Current,
    Demotion,
    End,
    FullClaim,
    Interruption,
    PoolBackoff,
    SpotTrainingJobStatus,
    Stop,
    SuspectNode,
    UndecidedExit,
)
from spot_training.api.times import format_time
from spot_training.control.act import CreatePod, CreateService, DeletePod, actions
from spot_training.control.policies.backoff import delay, fraction
from spot_training.control.world import Claim, Exit, Pod, Refusal, Report
from tests.unit.control.build import NOW, UID, Scene, check_progress, reclaim, spec

NODES = ["a1", "a2", "b1", "b2"]
times = st.sampled_from([-400.0, -61.0, -7.25, 0.0, 45.5])
stamps = times.map(lambda at: format_time(NOW + at))
past = st.sampled_from([-400.0, -61.0, -7.25, 0.0]).map(lambda at: format_time(NOW + at))
maybe = st.none() | past
classes = st.sampled_from(
    ["Completed", "Disruption", "Failure", "Suspended", "Cancelled", "NotStarted", "Blocked"]
)
reports = st.none() | st.builds(
    Report,
    reason=st.sampled_from(["", "Running", "Preempted", "Completed", "Failed"]),
    step=st.none() | st.integers(0, 99),
    checkpoint_step=st.none() | st.integers(0, 99),
    checkpoint_time=st.none() | times.map(lambda at: NOW + at),
    resumed_step=st.none() | st.integers(0, 9),
)


@st.composite
def pods(draw: st.DrawFn, replicas: int) -> dict[str, Pod]:
    made = {}
    for attempt in (1, 2):
        for index in range(replicas):
            kind = draw(st.sampled_from(["absent", "pending", "running", "ended", "ended", "partly"]))
            if kind == "absent":
                continue
            code = draw(st.sampled_from([0, 1, 137, 143, 255]))
            over, begun = kind in ("ended", "partly"), kind != "pending"
            name = f"job-{attempt}-{index}"
            made[name] = Pod(
                "ns",
                name,
                f"{name}-uid",
                draw(st.sampled_from(NODES)) if begun else draw(st.sampled_from(["", *NODES])),
                job="job",
                job_uid=UID,
                attempt=attempt,
                index=index,
                deleting=draw(st.booleans()),
                kill_at=draw(times.map(lambda at: NOW + at)),
                started_at=NOW - 100 if begun and draw(st.booleans()) else None,
                running=kind == "running",
                gated=kind == "pending" and draw(st.booleans()),
                ended=kind == "ended",
                exit=Exit(
                    code, draw(st.sampled_from(["Error", "OOMKilled", "Unknown", "StartError"])), NOW - 9
                )
                if over
                else None,
                report=draw(reports) if over else None,
                status_reason=draw(st.sampled_from(["", "", "Evicted", "OutOfcpu"])),
                disruption=draw(st.sampled_from(["", "", "SpotReclamation", "PreemptionByScheduler"])),
                removed=draw(st.booleans()),
            )
    return made


@st.composite
def statuses(draw: st.DrawFn, replicas: int) -> SpotTrainingJobStatus:
    current = None
    if draw(st.booleans()):
        undecided = draw(st.booleans())
        exits = [UndecidedExit(index=0, exit_code=1, at=draw(past), reason="ExitCode")] if undecided else []
        cls = None if undecided else draw(classes)
        stop = Stop(cause="Word", cls=cls, message="m", at=draw(past), deadline=draw(st.none() | stamps))
        ref = st.builds(
            AttemptNode,
            index=st.integers(0, replicas - 1),
            name=st.sampled_from(NODES),
            uid=st.sampled_from(["a1-uid", "b1-uid", "old"]),
        )
        current = Current(
            attempt=2,
            pool=draw(st.sampled_from(["a", "b", "gone"])),
            opened_at=draw(past),
            started_at=draw(maybe),
            running_at=draw(maybe),
            replicas=draw(st.none() | st.integers(1, 3)),
            generation=draw(st.none() | st.integers(1, 2)),
            node=draw(st.sampled_from([None, None, "a1", "gone"])),
            queue=draw(st.sampled_from([None, None, "team"])),
            gated=draw(st.none() | st.just(True)),
            admitted_at=draw(maybe),
            nodes=draw(st.lists(ref, max_size=replicas, unique_by=lambda each: each.index)),
            completed=draw(st.lists(st.integers(0, replicas - 1), unique=True).map(sorted)),
            stop=stop if undecided or draw(st.booleans()) else None,
            undecided=exits,
            end=End(cls=draw(classes), reason="Word", at=draw(past)) if draw(st.booleans()) else None,
        )
    return SpotTrainingJobStatus(
        phase=draw(st.sampled_from(["Pending", "Starting", "Running", "Recovering", "Succeeded", "Failed"])),
        failures=draw(st.integers(0, 4)),
        disruptions=draw(st.integers(0, 2)),
        failure_streak=draw(st.integers(0, 40)),
        start_streak=draw(st.integers(0, 9)),
        suspect_nodes=draw(
            st.lists(
                st.builds(
                    SuspectNode,
                    name=st.sampled_from(NODES),
                    uid=st.sampled_from(["a1-uid", "old"]),
                    failures=st.integers(1, 3),
                    reason=st.just("Word"),
                    at=past,
                    avoided_until=st.none() | stamps,
                ),
                max_size=2,
                unique_by=lambda each: each.name,
            )
        ),
        next_try_at=draw(st.none() | stamps),
        next_try_pool=draw(st.sampled_from([None, None, "a", "gone"])),
        pool_backoffs=draw(
            st.lists(
                st.builds(
                    PoolBackoff,
                    pool=st.sampled_from(["a", "b", "gone"]),
                    setbacks=st.integers(1, 40),
                    reason=st.just("Word"),
                    at=past,
                    next_try_at=st.none() | stamps,
                ),
                max_size=3,
                unique_by=lambda each: each.pool,
            )
        ),
        paced_until=draw(st.none() | stamps),
        full_claim=draw(
            st.none()
            | st.builds(
                FullClaim,
                at=past,
                times=st.integers(1, 40),
                uid=st.sampled_from(["claim-uid", "old"]),
                capacity=st.sampled_from([None, "1Gi"]),
                generation=st.integers(0, 1),
            )
        ),
        start_time=draw(maybe),
        current=current,
        completion_time=draw(maybe),
        checkpoint=draw(st.none() | st.builds(CheckpointStatus, step=st.integers(0, 9), time=maybe)),
        demoted_pools=[Demotion(pool="a", until=draw(stamps), reason="Word")] if draw(st.booleans()) else [],
        timeline=[Interruption(attempt=1, reason="Word")] if draw(st.booleans()) else [],
    )


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    replicas = draw(st.integers(1, 3))
    about = spec(
        replicas,
        checkpoint={"writer": draw(st.sampled_from(["Library", "Other"]))},
        suspend=draw(st.booleans()),
        deadlineSeconds=draw(st.none() | st.just(300)),
        recovery={"maxDisruptions": draw(st.none() | st.just(1)), "retryableExitCodes": [137]},
        ttlSecondsAfterFinished=draw(st.none() | st.just(60)),
    )
    scene = Scene(
        about, status=draw(statuses(replicas)), deleting=draw(st.booleans()) and draw(st.booleans())
    )
    scene.pods = draw(pods(replicas)) if scene.status.current is not None else {}
    for name in NODES:
        match draw(st.sampled_from(["well", "well", "marked", "silent", "out", "other", "absent"])):
            case "marked":
                scene.mark(name, reclaim(draw(st.none() | times), draw(st.sampled_from(["", "n-1", "n-2"]))))
            case "silent":
                scene.on_node(name, ready=False, ready_since=NOW + min(0.0, draw(times)))
            case "out":
                scene.on_node(name, out_of_service=True)
            case "other":
                scene.on_node(name, uid="new")
            case "absent":
                del scene.nodes[name]
    scene.claim = draw(st.sampled_from([scene.claim, None, Claim("claim", "u", deleting=True)]))
    scene.dry_run = Refusal("no", temporary=True) if draw(st.booleans()) else True
    # Of an attempt that is not open yet nothing can have been refused.
    scene.refused = draw(st.sampled_from([0, 0, 1, 2])) if scene.status.current is not None else 0
    scene.obstacle = "not all could be created: no" if scene.refused else ""
    scene.leases = {name: NOW + draw(times) for name in NODES}
    return scene


@given(scenes(), st.sampled_from([0.0, 1.0, 30.0, 400.0]))
def test_a_plan_is_deterministic_idempotent_and_only_goes_forward(scene: Scene, later: float) -> None:
    scene.step()
    scene.step(later)


@given(scenes())
def test_a_stop_or_an_end_is_kept(scene: Scene) -> None:
    before = scene.status.current
    assume(before is not None and before.stop is not None)
    scene.step()
    after = scene.status.current
    assert before
    assert after
    if after.attempt == before.attempt:
        assert before.stop
        assert after.stop is not None
        assert before.stop.cls is None or after.stop.cls == before.stop.cls
    else:
        check_progress(before=scene.status, after=scene.status)


@given(scenes())
def test_pods_are_created_only_for_an_open_attempt_in_which_nothing_has_started(scene: Scene) -> None:
    did = scene.step()
    created = [each for each in did if isinstance(each, CreatePod | CreateService)]
    current = scene.status.current
    if created:
        assert not scene.job.finished
        assert not scene.job.deleting
        assert current is not None
        assert (current.started_at, current.stop, current.end) == (None, None, None)
        assert not scene.job.spec.suspend
    indices = [each.index for each in did if isinstance(each, CreatePod)]
    assert len(indices) == len(set(indices))


@given(scenes())
def test_what_is_deleted_is_there_and_has_not_ended(scene: Scene) -> None:
    for each in scene.step():
        if isinstance(each, DeletePod):
            pod = scene.pods[each.name]
            assert (pod.uid, pod.removed) == (each.uid, False)
            assert each.grace is None or each.grace >= 1
            current = scene.status.current
            assert not pod.ended or (current is not None and pod.attempt < current.attempt - 1)


@given(scenes(), st.sampled_from(["Succeeded", "Failed"]))
def test_a_finished_job_stays_as_it_is(scene: Scene, phase: str) -> None:
    ended = scene.status.model_copy(update={"phase": phase})
    scene.job = dataclasses.replace(scene.job, status=ended)
    did = scene.step(10_000)
    assert scene.status == ended
    assert not [each for each in did if isinstance(each, CreatePod | CreateService)]


@given(scenes())
def test_what_does_not_run_says_why(scene: Scene) -> None:
    assume(not scene.job.finished and not scene.job.deleting)
    scene.step()
    condition = scene.condition()
    assert (condition.status == "True") is (scene.status.phase == "Running")
    assert condition.reason
    assert condition.message


@given(scenes())
def test_the_same_actions_follow_from_the_same_status(scene: Scene) -> None:
    assert scene.step() == actions(scene.job, scene.world(), scene.now)


@given(st.integers(-1, 2000), st.integers(1, 1000), st.integers(0, 86400), st.text(max_size=9))
def test_a_delay_is_positive_and_bounded(streak: int, initial: int, more: int, seed: str) -> None:
    seconds = delay(streak, initial, initial + more, seed)
    assert seconds == 0.0 if streak <= 0 else 0.0 < seconds <= initial + more
    assert seconds == delay(streak, initial, initial + more, seed)


def test_jitter_spreads() -> None:
    found = sorted(fraction(f"job-{number}/1") for number in range(1000))
    assert all(abs(value - place / 1000) < 0.08 for place, value in enumerate(found))
