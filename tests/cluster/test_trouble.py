"""What keeps real pods from starting: the cause and what to do are said, nothing is counted, mending it is enough."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.cluster.objects import Json, changed
from tests.cluster.scene import Place, applied, pods, status, wait_for, wait_reason
from tests.kit import install, jobs, volumes
from tests.kit.kube import get, kubectl

# Begun before anything else: what a pod's Events alone tell of is asked for after the better part of a minute.
pytestmark = pytest.mark.usefixtures("troubled")

CONTAINER: Final = "spec.template.spec.containers.0"


@dataclass(frozen=True)
class Trouble:
    """A job that cannot start: what is wrong with it, what is said of that, and what is put right."""

    name: str
    wrong: dict[str, Any]
    reason: str
    words: tuple[str, ...]
    right: dict[str, Any]


TROUBLES: Final = [
    Trouble(
        "no-image",
        {f"{CONTAINER}.image": "spot-training-nobody-made-this:1"},
        "ImagePullFailed",
        ("rank 0: ", "look at the image's name and tag"),
        {f"{CONTAINER}.image": install.TRAINING_IMAGE},
    ),
    Trouble(
        "no-secret",
        {f"{CONTAINER}.envFrom": [{"secretRef": {"name": "nobody-made-this"}}]},
        "ContainerConfigFailed",
        ('secret "nobody-made-this" not found', "make the Secret"),
        {f"{CONTAINER}.envFrom": []},
    ),
    Trouble(
        "no-command",
        {f"{CONTAINER}.command": ["/nobody/made/this"]},
        "BackOff",
        ("StartError", "no such file or directory", "look at its command"),
        {f"{CONTAINER}.command": ["true"]},
    ),
    Trouble(
        "no-volume",
        {
            "spec.template.spec.volumes": [{"name": "data", "secret": {"secretName": "nobody-made-this"}}],
            f"{CONTAINER}.volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
        "VolumeMountFailed",
        ('secret "nobody-made-this" not found', "look at the claim and its volume"),
        {"spec.template.spec.volumes": [], f"{CONTAINER}.volumeMounts": []},
    ),
]


def made(place: Place, trouble: Trouble, fields: dict[str, Any]) -> Json:
    right = {f"{CONTAINER}.command": ["true"], f"{CONTAINER}.image": install.TRAINING_IMAGE}
    backoff = {"backoff": {"initialSeconds": 1, "maxSeconds": 1}}
    return changed(place.job(trouble.name, recovery=backoff), right | fields)


@contextmanager
def ended_well(
    place: Place, name: str, script: str, mode: str = "ReadWriteMany", **spec: Any
) -> Iterator[Json]:
    """The status of a job that runs a script on a volume of its own, once it has succeeded."""
    volume = f"{place.names}-{name}"
    volumes.make_volume(volume, "1Mi", access_mode=mode, claim=(place.namespace, name))
    volumes.make_claim(place.namespace, name, volume, "1Mi")
    image = {f"{CONTAINER}.image": install.TRAINING_IMAGE, f"{CONTAINER}.command": ["sh", "-c", script]}
    try:
        applied(changed(place.job(name, **spec), image))
        wait_succeeded(place, name)
        yield status(place.namespace, name)
    finally:
        kubectl("-n", place.namespace, "delete", "stj", name, "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", name)
        volumes.delete_volume(volume)


def wait_succeeded(place: Place, name: str) -> None:
    def succeeded() -> bool:
        return bool(status(place.namespace, name).get("phase") == "Succeeded")

    wait_for(place.namespace, name, "ended well", succeeded, timeout=120)


@pytest.fixture(scope="module")
def troubled(place: Place) -> Iterator[None]:
    """All jobs, each on a volume of its own."""
    for trouble in TROUBLES:
        volume = f"{place.names}-{trouble.name}"
        volumes.make_volume(volume, "1Mi", claim=(place.namespace, trouble.name))
        volumes.make_claim(place.namespace, trouble.name, volume, "1Mi")
        applied(made(place, trouble, trouble.wrong))
    yield
    for trouble in TROUBLES:
        kubectl("-n", place.namespace, "delete", "stj", trouble.name, "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", trouble.name)
        volumes.delete_volume(f"{place.names}-{trouble.name}")


def test_a_gang_on_a_read_write_once_claim_runs_on_one_node(place: Place) -> None:
    # Each rank waits for the other one's file: both have the volume at once.
    script = 'touch "/mnt/checkpoint/$RANK"; until [ -e "/mnt/checkpoint/$((1 - RANK))" ]; do sleep 0.1; done'
    with ended_well(place, "once", script, mode="ReadWriteOnce", replicas=2) as state:
        assert state["current"]["oneNode"] is True
        nodes = {each["spec"]["nodeName"] for each in pods(place.namespace, "once")}
        assert nodes == {state["current"]["node"]}


def test_an_exit_code_that_asks_for_another_try_uses_up_no_failure(place: Place) -> None:
    script = '[ "$SPOT_ATTEMPT" = 1 ] && exit 42; exit 0'
    recovery = {"maxFailures": 0, "retryableExitCodes": [42]}
    with ended_well(place, "again", script, recovery=recovery) as state:
        assert (state["failures"], state["disruptions"], state["current"]["attempt"]) == (0, 1, 2)
        assert state["timeline"][0]["reason"] == "RetryableExit"
        (node,) = {each["spec"]["nodeName"] for each in pods(place.namespace, "again")}
        (suspect,) = state["suspectNodes"]
        uid = get(f"node/{node}")[0]["metadata"]["uid"]
        assert (suspect["name"], suspect["uid"], suspect["failures"]) == (node, uid, 1)


def test_pods_that_a_queue_gates_wait_and_go_on_when_it_lets_them(place: Place) -> None:
    """As with Kueue: its webhook's gates are in the template here, and its controller's part is played below."""
    volume = f"{place.names}-queued"
    volumes.make_volume(volume, "1Mi", claim=(place.namespace, "queued"))
    volumes.make_claim(place.namespace, "queued", volume, "1Mi")
    fields = {
        "metadata.labels": {"kueue.x-k8s.io/queue-name": "team"},
        "spec.template.spec.schedulingGates": [{"name": "kueue.x-k8s.io/admission"}],
        f"{CONTAINER}.image": install.TRAINING_IMAGE,
        f"{CONTAINER}.command": ["true"],
    }
    try:
        applied(changed(place.job("queued", replicas=2), fields))
        condition = wait_reason(place.namespace, "queued", "Queued")
        assert "waiting in Kueue's queue team" in condition["message"]
        assert status(place.namespace, "queued")["phase"] == "Pending"
        gated = pods(place.namespace, "queued")
        groups = {each["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for each in gated}
        counts = {each["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] for each in gated}
        assert (len(gated), len(groups), counts) == (2, 1, {"2"})
        patch = json.dumps([{"op": "remove", "path": "/spec/schedulingGates"}])
        for each in gated:
            kubectl(
                "-n", place.namespace, "patch", "pod", each["metadata"]["name"], "--type=json", "-p", patch
            )
        wait_succeeded(place, "queued")
        state = status(place.namespace, "queued")
        assert (state["current"]["attempt"], state["disruptions"]) == (1, 0)
        assert state["current"]["openedAt"] < state["current"]["admittedAt"]
    finally:
        kubectl("-n", place.namespace, "delete", "stj", "queued", "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", "queued")
        volumes.delete_volume(volume)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_it_is_said_and_mended_and_is_no_failure(trouble: Trouble, place: Place) -> None:
    def said() -> str:
        found = jobs.condition(status(place.namespace, trouble.name), "Running")
        return str(found.get("message", "")) if found.get("reason") == trouble.reason else ""

    wait_for(
        place.namespace,
        trouble.name,
        f"says {trouble.reason}",
        lambda: all(words in said() for words in trouble.words),
        timeout=120,
    )
    applied(made(place, trouble, trouble.right))
    wait_succeeded(place, trouble.name)
    state = status(place.namespace, trouble.name)
    assert (state["failures"], state["disruptions"]) == (0, 0)
    assert state["current"]["attempt"] > 1
