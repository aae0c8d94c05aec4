"""Two operators, one API server: one is killed, frozen or told to go, the other goes on; nothing is done twice."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.objects import Json, changed, kubectl
from tests.cluster.scene import Place, applied, events, pods, status, wait_for
from tests.kit import install, volumes
from tests.kit.kube import get
from tests.kit.operators import Operator, installed_operator_away, lease

# The installed operator is away as long as these last.
pytestmark = pytest.mark.alone

FOREVER = "trap 'exit 143' TERM; while :; do sleep 0.1; done"


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
        leader = next((it for it in self.both if it.name == self.holder), self.both[0])
        leader.wait_leading()
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


@pytest.fixture
def scene(pair: Pair, place: Place, request: pytest.FixtureRequest) -> Iterator[Scene]:
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
