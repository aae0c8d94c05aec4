"""The operator in a cluster where everything goes wrong in any order: what must always hold, holds.

The real reconciler, caches and writes run against a simulated API server; hypothesis (`test_machine.py`) or chance
(`test_walks.py`) decides what happens next: pods start, end and are deleted; nodes are marked, die, are cut off and
come back; the watch lags; answers are lost; the operator is killed between any two writes; a watch expires, and nobody
tells what went meanwhile; a former leader wakes up with what it knew, and nothing but the API server holds it back.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from spot_training.api.status import SpotTrainingJobStatus
from spot_training.cluster.client import ApiError
from tests.unit.control.build import check_progress
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.operated import KEY, Key, Operated
from tests.unit.control.sim import Crash, Sim

NODES = ["a1", "a2", "a3", "a4"]
ASSUME_GONE = 300.0
SIZES = [1, 2, 2, 3]

Attempt = tuple[str, int]
"""The job's name, and the attempt's number."""
PICKS = range(21)
YES_OR_NO = (False, True)
HAPPENINGS: dict[str, dict[str, Sequence[Any]]] = {}
"""What may happen, by the name of the method: what each of its arguments may be."""


def happens(**choices: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule, and how to draw its arguments without hypothesis."""

    def made(method: Callable[..., None]) -> Callable[..., None]:
        HAPPENINGS[method.__name__] = choices
        drawn: Any = {name: st.sampled_from(every) for name, every in choices.items()}
        decorate: Callable[[Callable[..., None]], Callable[..., None]] = rule(**drawn)
        return decorate(method)

    return made


class Machine(RuleBasedStateMachine):
    """One job in a pool of four nodes."""

    writer = "Other"

    def job(self, replicas: int) -> Json:
        """What the user has applied."""
        job = raw_job()
        job["spec"]["replicas"] = replicas
        job["spec"]["checkpoint"]["writer"] = self.writer
        job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 4}}
        job["spec"]["recovery"] = {"maxFailures": 2, "retryableExitCodes": [42]}
        return job

    @initialize(replicas=st.sampled_from(SIZES))
    def begin(self, replicas: int) -> None:
        pool = {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
            "spec": {"nodeSelector": {"pool": "a"}},
        }
        self.loop = asyncio.new_event_loop()
        self.sim = Sim(self.job(replicas), pool, NODES)
        self.replicas = replicas
        self.crashed: set[Attempt] = set()
        self.trouble: set[Attempt] = set()
        self.torn: set[Attempt] = set()
        self.seen = SpotTrainingJobStatus()
        self.former: list[Operated] = []
        self._status = ("", SpotTrainingJobStatus())
        self.restart()
        self.things_go_on()
        assert self.status.phase == "Running", self.status

    def teardown(self) -> None:
        try:
            if hasattr(self, "sim"):
                self.heal()
        finally:
            if hasattr(self, "loop"):
                self.loop.close()

    # The operator

    def restart(self) -> None:
        """A new operator, that knows what it lists."""
        self.sim.lose, self.sim.before_write = 0, lambda: None
        self.sim.watch.clear()
        self.operator = Operated(self.sim)

    def deliver(self, count: int) -> None:
        self.operator.deliver(count)

    @happens(count=range(1, 7))
    def watch(self, count: int) -> None:
        self.deliver(count)

    @happens()
    def look(self) -> None:
        self.reconcile()

    @happens()
    def watch_and_look(self) -> None:
        self.deliver(len(self.sim.watch))
        self.reconcile()

    @happens()
    def things_go_on(self) -> None:
        """The way to a running job, which chance alone would seldom find."""
        self.watch_and_look()
        self.pods_start()
        self.watch_and_look()

    @happens(after=range(5))
    def look_and_be_killed(self, after: int) -> None:
        left = [after]

        def kill() -> None:
            if not left[0]:
                raise Crash
            left[0] -= 1

        self.sim.before_write = kill
        with suppress(Crash):
            self.reconcile()
        self.restart()

    @happens(answers=range(1, 3))
    def look_and_lose_answers(self, answers: int) -> None:
        self.sim.lose = answers
        with suppress(TimeoutError):
            self.reconcile()
        self.sim.lose = 0

    @happens()
    def the_watch_expires(self) -> None:
        """All is listed anew, and what went meanwhile stays in the caches."""
        self.sim.watch.clear()
        self.operator.list()

    @happens()
    def the_caches_are_compared(self) -> None:
        self.operator.compare()

    @happens()
    def the_leader_is_frozen_and_another_takes_over(self) -> None:
        self.former = [*self.former[-1:], self.operator]
        self.restart()

    @happens(passes=range(1, 4))
    def former_leaders_wake_up(self, passes: int) -> None:
        """Each with the caches of back then; what the Lease would forbid it is not forbidden here."""
        for each in self.former:
            for _ in range(passes):
                self.reconcile(each)

    def reconcile(self, operator: Operated | None = None) -> None:
        for key in self.keys:
            try:
                self.loop.run_until_complete((operator or self.operator).reconcile(key))
            except (ApiError, RuntimeError) as error:
                raise AssertionError(f"the pass failed: {error!r}") from error

    @property
    def keys(self) -> list[Key]:
        """The jobs, in the order in which they are looked at."""
        return [KEY]

    # The world

    @happens(seconds=[1, 9, 40, 61, 301])
    def time_passes(self, seconds: int) -> None:
        self.sim.now += seconds
        self.sim.renew()
        self.notice_silence()

    def notice_silence(self) -> None:
        for name, state in self.sim.machine.items():
            if state != "up" and self.sim.now - self.sim.leases[name] > 40 and self.sim.ready(name) == "True":
                self.sim.set_ready(name, "Unknown")

    @happens()
    def pods_start(self) -> None:
        for pod in list(self.sim.pods.values()):
            if not pod["spec"].get("nodeName"):
                self.sim.bind(pod)
            name = pod["spec"].get("nodeName")
            ready = name and self.sim.machine[name] == "up" and "deletionTimestamp" not in pod["metadata"]
            if ready and pod["status"]["phase"] == "Pending":
                self.sim.start(pod)

    def running(self, pick: int) -> Json | None:
        """A running pod whose kubelet can say what becomes of it."""
        found = [
            pod
            for pod in self.sim.pods.values()
            if pod["status"]["phase"] == "Running" and self.sim.machine[pod["spec"]["nodeName"]] == "up"
        ]
        return found[pick % len(found)] if found else None

    @happens(pick=PICKS)
    def a_program_fails(self, pick: int) -> None:
        pod = self.running(pick)
        if pod is not None:
            self.crashed.add(attempt_of(pod))
            self.sim.end(pod, 1, "Error")

    @happens(pick=PICKS)
    def a_program_asks_for_another_try(self, pick: int) -> None:
        pod = self.running(pick)
        if pod is not None:
            self.sim.end(pod, 42, "Error")

    @happens()
    def a_container_cannot_be_started(self) -> None:
        for pod in list(self.sim.pods.values()):
            name = pod["spec"].get("nodeName")
            if name and self.sim.machine[name] == "up" and pod["status"]["phase"] == "Pending":
                self.sim.end(pod, 128, "StartError")
                return

    def survivor_fails(self, attempt: Attempt) -> None:
        """A rank of an attempt whose peer is in trouble dies of it."""
        pod = self.running(0)
        if pod is not None and attempt_of(pod) == attempt and attempt in self.trouble:
            self.torn.add(attempt)
            self.sim.end(pod, 1, "Error")

    @happens(pick=PICKS)
    def a_rank_is_done(self, pick: int) -> None:
        pod = self.running(pick)
        # No rank is done with its work that another has died over.
        if pod is not None and attempt_of(pod) not in self.torn:
            self.sim.end(pod, 0, "Completed", '{"reason":"Completed","step":9}')

    @happens(gone=YES_OR_NO, code=[143, 0, 1, 137])
    def stopping_pods_stop(self, gone: bool, code: int) -> None:
        for pod in list(self.sim.pods.values()):
            name = pod["spec"].get("nodeName")
            if "deletionTimestamp" in pod["metadata"] and self.sim.machine[name] == "up":
                if pod["status"]["phase"] == "Running":
                    self.sim.end(pod, code, "Error" if code else "Completed")
                if gone:
                    self.sim.containers.pop(pod["metadata"]["uid"], None)
                    self.sim.remove(pod)

    @happens(
        pick=PICKS,
        reason=["", "EvictionByEvictionAPI", "SpotReclamation"],
        survivor=YES_OR_NO,
    )
    def somebody_deletes_a_pod(self, pick: int, reason: str, survivor: bool) -> None:
        pods = list(self.sim.pods.values())
        if pods:
            pod = pods[pick % len(pods)]
            if pod["status"]["phase"] == "Running":
                self.trouble.add(attempt_of(pod))
            if reason:
                pod["status"]["conditions"] = [
                    {"type": "DisruptionTarget", "status": "True", "reason": reason}
                ]
            self.sim.delete_pod(pod)
            if survivor:
                self.survivor_fails(attempt_of(pod))

    @happens(name=NODES, seconds=[None, 5, 30, 120])
    def a_notice_comes_or_is_withdrawn(self, name: str, seconds: int | None) -> None:
        if seconds is None:
            self.sim.unmark(name)
        else:
            self.sim.mark(name, self.sim.now + seconds)

    @happens(name=NODES, what=["dies", "is cut off", "is replaced"], survivor=YES_OR_NO)
    def a_machine(self, name: str, what: str, survivor: bool) -> None:
        if what == "is replaced":
            self.sim.replace(name)
        elif self.sim.machine[name] == "up" and what == "dies":
            self.trouble |= {
                attempt_of(pod) for pod in self.sim.on(name) if pod["status"]["phase"] == "Running"
            }
            self.sim.power_off(name)
            for attempt in self.trouble if survivor else ():
                self.survivor_fails(attempt)
        elif self.sim.machine[name] == "up":
            self.sim.cut(name)

    @happens(name=NODES, verified=YES_OR_NO)
    def a_machine_comes_back_or_is_given_up(self, name: str, verified: bool) -> None:
        if verified and self.sim.machine[name] == "off":
            self.sim.out_of_service(name)
        elif self.sim.machine[name] != "up" and self.sim.ready(name) != "True":
            self.sim.restore(name)

    @happens(suspend=YES_OR_NO)
    def the_user_suspends(self, suspend: bool) -> None:
        if bool(self.sim.job["spec"].get("suspend")) != suspend:
            self.sim.edit_job(suspend=suspend)

    # What must always hold

    @invariant()
    def what_must_always_hold(self) -> None:
        if hasattr(self, "sim"):
            self.counters_and_stops_only_go_forward()
            self.a_disruption_is_no_failure_and_is_counted_once()
            self.attempts_that_cannot_be_fenced_never_run_together()
            self.what_waits_says_why()

    def counters_and_stops_only_go_forward(self) -> None:
        now = self.status
        check_progress_over(self.seen, now)
        self.seen = now

    def a_disruption_is_no_failure_and_is_counted_once(self) -> None:
        now = self.status
        crashed = [number for name, number in self.crashed if name == "job"]
        assert now.failures <= len(crashed), f"failures {now.failures}, the program's: {crashed}"
        ended = (now.current.attempt if now.current else 0) - bool(now.current and not now.current.end)
        assert now.failures + now.disruptions <= ended

    def attempts_that_cannot_be_fenced_never_run_together(self) -> None:
        if self.writer == "Library":
            return
        alive: dict[str, set[Attempt]] = {}
        for uid, pod_name in self.sim.containers.items():
            pod = self.sim.pods.get(pod_name)
            name = pod["spec"]["nodeName"] if pod and pod["metadata"]["uid"] == uid else ""
            since = self.sim.cut_since.get(name)
            given_up = not name or (
                self.sim.machine[name] == "cut" and since is not None and self.sim.now - since > ASSUME_GONE
            )
            if pod and not given_up:
                alive.setdefault(claim_of(pod), set()).add(attempt_of(pod))
        for claim, attempts in alive.items():
            assert len(attempts) <= 1, f"attempts run together on {claim}: {sorted(attempts)}"

    def what_waits_says_why(self) -> None:
        if not self.sim.job["status"]:
            return
        status = self.status
        (condition,) = [each for each in status.conditions if each.type == "Running"]
        assert (condition.status == "True") is (status.phase == "Running")
        assert condition.reason
        assert condition.message, status

    @property
    def status(self) -> SpotTrainingJobStatus:
        version = str(self.sim.job["metadata"]["resourceVersion"])
        if self._status[0] != version:
            self._status = version, SpotTrainingJobStatus.model_validate(self.sim.job["status"])
        return self._status[1]

    def heal(self) -> None:
        """Everything is mended, and the job goes on to its end."""
        for name in NODES:
            self.sim.replace(name)
        if self.sim.job["spec"].get("suspend"):
            self.sim.edit_job(suspend=False)
        self.deliver(len(self.sim.watch))
        self.operator.compare()
        for _ in range(60):
            self.watch_and_look()
            if self.status.phase in ("Succeeded", "Failed"):
                break
            self.stopping_pods_stop(gone=True, code=143)
            self.pods_start()
            if self.status.phase == "Running":
                for pod in list(self.sim.pods.values()):
                    if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
                        self.sim.end(pod, 0, "Completed", '{"reason":"Completed"}')
            self.time_passes(9)
            self.counters_and_stops_only_go_forward()
            self.a_disruption_is_no_failure_and_is_counted_once()
        phase = self.status.phase
        assert phase == "Succeeded" or (phase == "Failed" and self.status.failures == 3), self.status
        self.watch_and_look()
        self.stopping_pods_stop(gone=True, code=143)
        left = [
            name for name, pod in self.sim.pods.items() if pod["status"]["phase"] in ("Pending", "Running")
        ]
        assert not left, f"left behind: {left}"


def attempt_of(pod: Json) -> Attempt:
    labels = pod["metadata"]["labels"]
    return labels["spot.training/job"], int(labels["spot.training/attempt"])


def claim_of(pod: Json) -> str:
    volumes = [
        each["persistentVolumeClaim"] for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each
    ]
    name: str = volumes[0]["claimName"]
    return name


def check_progress_over(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> None:
    """As `check_progress`, over any number of writes."""
    if before.current and after.current and before.current.attempt == after.current.attempt:
        check_progress(before, after)
    assert after.failures >= before.failures
    assert after.disruptions >= before.disruptions
    if before.phase in ("Succeeded", "Failed"):
        assert after == before, "a finished job was changed"


class FencedMachine(Machine):
    """The same, with a program whose attempts are fenced."""

    writer = "Library"
