"""What keeps an attempt from starting: the cause and what to do in the condition, and no failure counted."""

from typing import Any, cast

import pytest

from spot_training.cluster.client import Client
from spot_training.control.cache import Cache
from spot_training.control.complaints import MAX_KNOWN, Complaints
from spot_training.control.world import Ask
from tests.unit.control.build import Scene, spec
from tests.unit.control.objects import Json, raw_job, raw_pod

TROUBLES = [
    ("ImagePullBackOff: Back-off pulling image", "ImagePullFailed", "imagePullSecrets"),
    ("ErrImagePull: not found", "ImagePullFailed", "image's name and tag"),
    ("InvalidImageName: couldn't parse", "ImagePullFailed", "image's name"),
    ("CreateContainerConfigError: secret not found", "ContainerConfigFailed", "make the Secret"),
    ("CreateContainerError: nvidia-container-cli: driver", "ContainerStartFailed", "GPU driver"),
    ("RunContainerError: exec: not found", "ContainerStartFailed", "command"),
    ("Unschedulable: 0/4 nodes are available", "Unschedulable", "scheduler"),
    ("SomethingNew: who knows", "Starting", "SomethingNew: who knows"),
]


@pytest.mark.parametrize(("said", "reason", "advice"), TROUBLES, ids=[each[0] for each in TROUBLES])
def test_the_cause_and_what_to_do(said: str, reason: str, advice: str) -> None:
    scene = Scene(spec(replicas=2)).run()
    scene.change(0, started_at=scene.now, running=True)
    scene.change(1, trouble=said).step()
    assert scene.why() == ("False", reason)
    message = scene.condition().message
    assert f"rank 1: {said}" in message
    assert advice in message
    scene.step(5)
    assert [story.reason for story in scene.plan.stories] == [], "told once"
    assert scene.counts == (0, 0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("FailedMount: MountVolume.SetUp failed: secret not found", "VolumeMountFailed"),
        ("FailedAttachVolume: Multi-Attach error", "VolumeMountFailed"),
        ("FailedCreatePodSandBox: no runtime for nvidia", "SandboxFailed"),
    ],
)
def test_what_only_events_tell_is_looked_up_after_a_while(said: str, reason: str) -> None:
    scene = Scene().run()
    scene.events = {scene.pod().uid: said}
    scene.step(10)
    assert Ask.EVENTS not in scene.asked
    assert scene.plan.wake_at == scene.pod().created + 45
    scene.step(35)
    assert Ask.EVENTS in scene.asked
    assert scene.why() == ("False", reason)
    assert said in scene.condition().message
    assert [story.reason for story in scene.plan.stories] == [reason]
    assert scene.plan.wake_at == scene.now + 60
    scene.change(started_at=scene.now, running=True).step()
    assert (scene.why(), scene.asked) == (("True", "Running"), [])


def test_a_pod_that_no_node_has_yet_has_no_events_worth_a_question() -> None:
    scene = Scene().run().change(node="")
    scene.step(100)
    assert Ask.EVENTS not in scene.asked


def test_what_never_started_gives_its_pods_back_and_is_no_failure() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=100)).run()
    scene.change(trouble="ImagePullBackOff: Back-off pulling image").run(100)
    assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "ProvisionTimeout")
    scene.remove().run()
    assert (scene.current.attempt, scene.current.pool, scene.counts) == (2, "b", (0, 0))


def test_a_template_that_is_mended_is_tried_at_once() -> None:
    scene = Scene().run()
    scene.change(trouble="ImagePullBackOff: no such tag").run()
    scene.edit().run()
    assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "SpecChanged")
    scene.remove().run()
    assert (scene.current.attempt, scene.current.pool, scene.current.generation) == (2, "a", 2)
    assert (scene.counts, scene.status.start_streak) == ((0, 0), 0)


def test_an_edit_disturbs_no_attempt_that_runs_or_is_well_on_its_way() -> None:
    scene = Scene().run()
    assert scene.edit().run().current.stop is None
    scene.started()
    assert scene.edit().run().current.stop is None


class Events:
    """An API server that has Events, and counts who asks for them."""

    def __init__(self, *events: Json) -> None:
        self.events = list(events)
        self.asked: list[str] = []

    async def get(self, path: str, **query: str) -> Json:
        self.asked.append(query["fieldSelector"])
        return {"items": self.events}


def event(reason: str, at: str) -> Json:
    return {"reason": reason, "message": "why", "lastTimestamp": at}


def listener(server: Events, clock: list[float], *pods: Json) -> tuple[Complaints, Any]:
    cache = Cache()
    cache.jobs.put(raw_job(current={"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}))
    for raw in pods:
        cache.put_pod(raw)
    return Complaints(cast(Client, server), cache, lambda: clock[0]), cache.jobs.items["ns", "job"]


def waiting(name: str, uid: str) -> Json:
    return raw_pod(name, uid, phase="Pending", containerStatuses=[])


async def test_the_newest_warning_of_the_first_pod_that_waits() -> None:
    server = Events(event("FailedMount", "2026-04-08T05:02:00Z"), event("Old", "2026-04-08T05:01:00Z"))
    clock = [0.0]
    made, job = listener(server, clock, raw_pod("job-1-0", "p-0"), waiting("job-1-1", "p-1"))
    assert await made.of(job) == {"p-1": "FailedMount: why"}
    assert server.asked == ["involvedObject.uid=p-1,type=Warning"]
    server.events = []
    assert await made.of(job) == {"p-1": "FailedMount: why"}, "within a second the last answer stands"
    clock[0] += 1
    assert await made.of(job) == {"p-1": ""}
    assert len(server.asked) == 2


async def test_nobody_waits_nobody_asks_and_what_is_known_is_bounded() -> None:
    server, clock = Events(), [0.0]
    made, job = listener(server, clock, raw_pod("job-1-0", "p-0"))
    assert (await made.of(job), server.asked) == ({}, [])
    for number in range(MAX_KNOWN + 5):
        clock[0] += 1
        asks, other = listener(server, clock, waiting("job-1-1", f"p-{number}"))
        asks._known = made._known
        await asks.of(other)
    assert len(made._known) == MAX_KNOWN
