"""Two operators, one API server: one is killed, frozen or told to go, the other goes on; nothing is done twice.

And then there is none for a while: what must not need one goes on, and what it missed is judged when it is back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from spot_training.api.times import parse_time
from tests.cluster.objects import Json, changed, kubectl
from tests.cluster.scene import Place, applied, events, pods, status, wait_for
from tests.kit import install, jobs, volumes
from tests.kit.kube import get
from tests.kit.operators import Operator, installed_operator_away, lease
from tests.kit.shell import wait_until

# The installed operator is away as long as these last.
pytestmark = pytest.mark.alone

FOREVER = "trap 'exit 143' TERM; while :; do sleep 0.1; done"
MAX_COST: Final = "160"
"""Of which a second of the grace and fifteen of the margin are kept back."""
ENOUGH_SECONDS: Final = 40.0
"""With that left its operator has not stopped it, and does not before it is ended itself."""


class Pair:
    """The operators of this module; the one that has ended is replaced by a new one."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace, self.directory = namespace, directory
        self.both = [Operator(namespace, directory) for _ in range(2)]
        self.settle()

    def settle(self) -> tuple[Operator, Operator]:
        """Two that run; the leader, and the other."""
        for each in [it for it in self.both if it.ended]:
            self.both.remove(each)
            self.both.append(Operator(self.namespace, self.directory))
        for each in self.both:
            each.wait_standing_by()
        wait_until(
            "one of them leads",
            lambda: any(it.leading for it in self.both),
            timeout=60,
            seen=lambda: "\n".join(it.seen() for it in self.both),
        )
        leader = next(it for it in self.both if it.leading)
        (other,) = [it for it in self.both if it is not leader]
        return leader, other

    @property
    def holder(self) -> str:
        found: str = lease(self.namespace).get("holderIdentity", "")
        return found

    def end(self) -> None:
        for each in self.both:
            each.end()


class Scene:
    """A gang of two that runs, and what is known of it."""

    def __init__(self, place: Place, name: str) -> None:
        self.namespace, self.name = place.namespace, name

    @property
    def status(self) -> Json:
        return status(self.namespace, self.name)

    def uids(self, attempt: int) -> dict[str, str]:
        """By name, the UIDs of an attempt's pods."""
        return {
            each["metadata"]["name"]: each["metadata"]["uid"]
            for each in pods(self.namespace, self.name)
            if each["metadata"]["labels"]["spot.training/attempt"] == str(attempt)
        }

    def wait_attempt(self, attempt: int, phase: str = "Running") -> dict[str, str]:
        """Wait until that attempt is in that phase; the UIDs of its pods."""
        wait_for(
            self.namespace,
            self.name,
            f"attempt {attempt} {phase}",
            lambda: self.status.get("phase") == phase and self.status["current"]["attempt"] == attempt,
            timeout=60,
        )
        return self.uids(attempt)

    def wait_told(self, begin: str) -> None:
        """Wait for the Event that begins so: Events follow, one by one, the status that they tell of."""
        wait_for(
            self.namespace,
            self.name,
            f"an Event {begin!r}",
            lambda: any(each["message"].startswith(begin) for each in events(self.namespace, self.name)),
        )

    def lose_a_pod(self, attempt: int) -> None:
        kubectl("-n", self.namespace, "delete", "pod", f"{self.name}-{attempt}-0", "--wait=false")

    def check(self, disruptions: int, attempt: int, made: dict[str, str]) -> None:
        """Each disruption was counted once and told once, and the attempt's pods were made once."""
        state = self.status
        counted = (state["disruptions"], state["failures"], state["current"]["attempt"])
        assert counted == (disruptions, 0, attempt), state
        assert [each["attempt"] for each in state["timeline"]] == list(range(1, attempt)), state["timeline"]
        assert self.uids(attempt) == made
        assert len(made) == 2, made


@pytest.fixture(scope="module")
def pair(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with installed_operator_away():
        made = Pair(namespace, tmp_path_factory.mktemp("operators"))
        yield made
        made.end()


@pytest.fixture(scope="module")
def unattended(pair: Pair, place: Place) -> Iterator[Callable[[], None]]:
    """Jobs that run, begun before all others: one of them, which can be begun anew, has money for two minutes and a
    half.
    """
    with ExitStack() as after:

        def store(name: str, claim: str) -> None:
            volume = f"{place.names}-{name}"
            volumes.make_volume(volume, "1Mi", claim=(place.namespace, claim))
            after.callback(volumes.delete_volume, volume)
            if claim == name:
                volumes.make_claim(place.namespace, name, volume, "1Mi")
                after.callback(kubectl, "-n", place.namespace, "delete", "pvc", name)

        def run(name: str, **spec: Any) -> None:
            container = "spec.template.spec.containers.0"
            words = {
                f"{container}.image": install.TRAINING_IMAGE,
                f"{container}.command": ["sh", "-c", FOREVER],
                "spec.template.spec.terminationGracePeriodSeconds": 1,
            }
            applied(changed(place.job(name, **spec), words))
            after.callback(kubectl, "-n", place.namespace, "delete", "stj", name, "--ignore-not-found")

        template = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": volumes.STORAGE_CLASS,
            "resources": {"requests": {"storage": "1Mi"}},
        }
        own = {"mountPath": "/mnt/checkpoint", "claimTemplate": template, "retain": "Never"}
        # One a second for the node, all of which a pod without GPUs is charged.
        applied(
            place.pool("none"),
            place.pool("dear", here=True, capacityType="OnDemand", pricePerNodeHour="3600"),
        )
        dear = [f"{place.names}-none", f"{place.names}-dear"]
        money = {"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": MAX_COST}
        for name, claim in (("dear", "dear"), ("dropped", "dropped-checkpoint"), ("removed", "removed")):
            store(name, claim)
        run("dear", pools=dear, onDemand=money)
        run("dropped", checkpoint=own, replicas=2)
        run("removed")
        for name in ("dear", "dropped", "removed"):
            Scene(place, name).wait_attempt(1)

        def begin_anew() -> None:
            kubectl("-n", place.namespace, "delete", "stj", "dear")
            kubectl("-n", place.namespace, "wait", "--for=delete", "pod", "-l", "spot.training/job=dear")
            run("dear", pools=dear, onDemand=money)
            Scene(place, "dear").wait_attempt(1)

        yield begin_anew


def _seconds_left(place: Place) -> float:
    """How long the job may still run by its money."""
    for pod in pods(place.namespace, "dear"):
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
            limit: float = pod["spec"]["activeDeadlineSeconds"]
            return parse_time(pod["status"]["startTime"]) + limit - time.time()
    return 0.0


@pytest.fixture
def scene(
    pair: Pair, unattended: Callable[[], None], place: Place, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    name = request.node.originalname.removeprefix("test_")[:30].rstrip("_").replace("_", "-")
    volume = f"{place.names}-{name}"
    with ExitStack() as after:
        volumes.make_volume(volume, "1Mi", claim=(place.namespace, name))
        after.callback(volumes.delete_volume, volume)
        volumes.make_claim(place.namespace, name, volume, "1Mi")
        after.callback(kubectl, "-n", place.namespace, "delete", "pvc", name)
        job: Any = place.job(name, replicas=2)
        applied(
            changed(
                job,
                {
                    "spec.template.spec.containers.0.image": install.TRAINING_IMAGE,
                    "spec.template.spec.containers.0.command": ["sh", "-c", FOREVER],
                },
            )
        )
        after.callback(kubectl, "-n", place.namespace, "delete", "stj", name)
        made = Scene(place, name)
        made.wait_attempt(1)
        yield made


def test_a_leader_is_killed_at_any_point_of_a_recovery(pair: Pair, scene: Scene) -> None:
    """SIGKILL: as the pod is lost; once the stop is written; once the next attempt is opened."""
    points: list[Callable[[int], bool]] = [
        lambda attempt: True,
        lambda attempt: "stop" in scene.status["current"] or scene.status["current"]["attempt"] > attempt,
        lambda attempt: scene.status["current"]["attempt"] > attempt,
    ]
    for attempt, point in enumerate(points, start=1):
        leader, other = pair.settle()
        transitions = lease(pair.namespace)["leaseTransitions"]
        scene.lose_a_pod(attempt)
        wait_for(scene.namespace, scene.name, "the point at which to kill", partial(point, attempt))
        leader.kill()
        made = scene.wait_attempt(attempt + 1)
        other.wait_leading()
        assert (pair.holder, lease(pair.namespace)["leaseTransitions"]) == (other.name, transitions + 1)
        scene.check(attempt, attempt + 1, made)


def test_a_leader_that_was_frozen_wakes_up_late(pair: Pair, scene: Scene) -> None:
    leader, other = pair.settle()
    leader.freeze()
    try:
        # All of this the former leader learns at once when it wakes up, with the first in its hands.
        scene.lose_a_pod(1)
        scene.wait_attempt(2)
        scene.lose_a_pod(2)
        made = scene.wait_attempt(3)
        scene.wait_told("Attempt 3 runs")
        before = get(f"stj/{scene.name}", "-n", scene.namespace)[0]["metadata"]["resourceVersion"]
        told = len(events(scene.namespace, scene.name))
    finally:
        leader.thaw()
    leader.wait_deposed()
    # It has seen everything and stands by: the other is told to go, and it takes over with what is there.
    scene.check(2, 3, made)
    after = get(f"stj/{scene.name}", "-n", scene.namespace)[0]["metadata"]["resourceVersion"]
    assert (after, len(events(scene.namespace, scene.name))) == (before, told)
    assert other.stop() == 0
    leader.wait_leading()
    scene.lose_a_pod(3)
    scene.check(3, 4, scene.wait_attempt(4))


def test_a_leader_that_is_told_to_go_hands_over(pair: Pair, scene: Scene) -> None:
    leader, other = pair.settle()
    assert leader.stop() == 0
    assert "has given the Lease back" in leader.log
    other.wait_leading()
    scene.lose_a_pod(1)
    scene.check(1, 2, scene.wait_attempt(2))


def test_without_any_operator_jobs_go_pods_go_and_no_more_is_spent_than_was_allowed(
    pair: Pair, unattended: Callable[[], None], place: Place
) -> None:
    if _seconds_left(place) < ENOUGH_SECONDS:
        # The tests before this one took long: its operator has stopped it, or is about to.
        unattended()
    before = status(place.namespace, "dear")
    assert (before["current"]["attempt"], "stop" in before["current"]) == (1, False), before
    pair.end()

    def left(*kinds: str) -> str:
        words = ("-n", place.namespace, "get", ",".join(kinds), "-l", "spot.training/job=dropped")
        return kubectl(*words, "-o", "name")[1]

    # Deleted: what it consisted of goes with it, the claim too, which was to be its own.
    kinds = ("pods", "services", "persistentvolumeclaims")
    assert all(word in left(*kinds) for word in ("pod/", "service/", "persistentvolumeclaim/")), left(*kinds)
    kubectl("-n", place.namespace, "delete", "stj", "dropped")
    wait_until("all of dropped gone", lambda: left(*kinds) == "", timeout=60, seen=lambda: left(*kinds))
    # Its pod is gone, and what has become of it nobody will ever know.
    kubectl("-n", place.namespace, "delete", "pod", "removed-1-0", "--force", "--grace-period=0")

    def ended() -> Json:
        (pod,) = pods(place.namespace, "dear")
        return pod["status"] if pod["status"]["phase"] == "Failed" else {}

    wait_until(
        "the money's end", lambda: bool(ended()), timeout=180, seen=lambda: str(pods(place.namespace, "dear"))
    )
    assert ended()["reason"] == "DeadlineExceeded"
    assert status(place.namespace, "dear") == before, "somebody was there"

    pair.settle()
    removed = Scene(place, "removed")
    removed.wait_attempt(2)
    assert (removed.status["disruptions"], removed.status["failures"]) == (1, 0)
    assert removed.status["timeline"][0]["reason"] == "PodGone", removed.status
    dear = Scene(place, "dear")
    wait_for(
        place.namespace, "dear", "judged", lambda: "end" in dear.status["current"] and "cost" in dear.status
    )
    assert (dear.status["disruptions"], dear.status["failures"]) == (0, 0)
    assert dear.status["current"]["end"]["reason"] == "BudgetExhausted", dear.status
    assert jobs.condition(dear.status, "BudgetExhausted")["status"] == "True"
    spent = Decimal(dear.status["cost"]["onDemandSpent"])
    assert Decimal(MAX_COST) - 30 < spent <= Decimal(MAX_COST), dear.status["cost"]
