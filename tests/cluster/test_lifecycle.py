"""What a job leaves behind, whose job it is, and when it goes by itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.cluster.objects import Json, changed, kubectl
from tests.cluster.scene import (
    Place,
    applied,
    events,
    patched,
    pods,
    status,
    wait_for,
    wait_opened,
    wait_reason,
)
from tests.kit import install, volumes
from tests.kit.kube import get
from tests.kit.shell import wait_until

RETAINED: Final = {"Always": True, "OnFailure": True, "Never": False}
"""Whether the claim outlives a job that is deleted before its end."""
FINISHED: Final = {"Always": True, "OnFailure": False, "Never": False}
"""Whether it outlives a job that has succeeded."""


def gang(place: Place, name: str, retain: str, storage_class: str = "none", **spec: Any) -> Json:
    template = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": "1Mi"}},
    }
    checkpoint = {"mountPath": "/mnt/checkpoint", "claimTemplate": template, "retain": retain}
    return place.job(name, checkpoint=checkpoint, **spec)


def exists(place: Place, what: str) -> bool:
    return kubectl("-n", place.namespace, "get", what, "--ignore-not-found", "-o", "name")[1] != ""


def wait_gone(place: Place, what: str) -> None:
    wait_until(
        f"{what} gone",
        lambda: not exists(place, what),
        timeout=60,
        seen=lambda: kubectl("-n", place.namespace, "get", what, "-o", "yaml")[1],
    )


def wait_without_pods(place: Place, name: str) -> None:
    wait_until(
        f"the pods of {name} gone",
        lambda: not pods(place.namespace, name),
        timeout=60,
        seen=lambda: str(pods(place.namespace, name)),
    )


def wait_succeeded(place: Place, name: str) -> None:
    def ended() -> bool:
        return bool(status(place.namespace, name).get("phase") == "Succeeded")

    wait_for(place.namespace, name, "ended well", ended, timeout=90)


RESUMING: Final = ("resumed-old", "resumed-new")


@dataclass
class Resuming:
    """Why the job that starts from another waited at first, and what it copies from there."""

    waited: Json
    copied: Path


@pytest.fixture(scope="module")
def resuming(place: Place) -> Iterator[Resuming]:
    """A job that starts from another one, which is made later; that it is there is noticed after half a minute."""
    saved = []
    for name in RESUMING:
        volume = f"{place.names}-{name}"
        saved.append(volumes.make_volume(volume, "1Mi", claim=(place.namespace, name)) / "step")
        volumes.make_claim(place.namespace, name, volume, "1Mi")

    def run(name: str, script: str, **checkpoint: Any) -> None:
        container = "spec.template.spec.containers.0"
        made = place.job(name)
        made["spec"]["checkpoint"] |= checkpoint
        words = {f"{container}.command": ["sh", "-euc", script], f"{container}.image": install.TRAINING_IMAGE}
        applied(changed(made, words))

    try:
        run("resumed-new", 'cp "$SPOT_RESUME_DIR/step" /mnt/checkpoint/ && ! touch "$SPOT_RESUME_DIR/x"',
            resumeFrom={"job": "resumed-old"})  # fmt: skip
        waited = wait_reason(place.namespace, "resumed-new", "ResumeClaimUnavailable")
        run("resumed-old", "echo 7 > /mnt/checkpoint/step")
        yield Resuming(waited, saved[1])
    finally:
        kubectl("-n", place.namespace, "delete", "stj", *RESUMING, "--ignore-not-found")
        for name in RESUMING:
            kubectl("-n", place.namespace, "delete", "pvc", name)
            volumes.delete_volume(f"{place.names}-{name}")


def test_a_job_that_starts_from_one_that_is_not_known_waits_and_says_so(resuming: Resuming) -> None:
    # The claim is there, and the job that it is of is not yet known.
    assert "neither a job resumed-old nor a claim resumed-old-checkpoint" in resuming.waited["message"]


@pytest.fixture(scope="module")
def started(place: Place) -> None:
    """All jobs that are to be deleted, in their first attempt."""
    applied(*(gang(place, f"deleted-{retain.lower()}", retain, replicas=2) for retain in RETAINED))


@pytest.mark.parametrize("retain", RETAINED)
def test_a_deleted_job_leaves_only_the_claim_that_is_retained(
    started: None, retain: str, place: Place
) -> None:
    name = f"deleted-{retain.lower()}"
    wait_opened(place.namespace, name)
    claim = f"pvc/{name}-checkpoint"
    assert exists(place, claim)
    assert exists(place, f"service/{name}")
    # No finalizer of ours: a deletion needs no operator.
    metadata = get(f"stj/{name}", "-n", place.namespace)[0]["metadata"]
    assert "finalizers" not in metadata, metadata
    kubectl("-n", place.namespace, "delete", "stj", name)
    wait_without_pods(place, name)
    wait_gone(place, f"service/{name}")
    if RETAINED[retain]:
        kept = get(claim, "-n", place.namespace)[0]["metadata"]
        assert "deletionTimestamp" not in kept
        assert "ownerReferences" not in kept
    else:
        wait_gone(place, claim)


@pytest.fixture(scope="module")
def finishing(place: Place) -> Iterator[None]:
    """All jobs that are to end well and to go by themselves; these have volumes, and really run."""
    names = {retain: f"finished-{retain.lower()}" for retain in FINISHED}
    for name in names.values():
        volumes.make_volume(f"{place.names}-{name}", "1Mi", claim=(place.namespace, f"{name}-checkpoint"))
    made = [
        gang(place, name, retain, volumes.STORAGE_CLASS, ttlSecondsAfterFinished=3)
        for retain, name in names.items()
    ]
    applied(*(changed(each, {"spec.template.spec.containers.0.command": ["true"]}) for each in made))
    yield
    for name in names.values():
        kubectl("-n", place.namespace, "delete", "pvc", f"{name}-checkpoint", "--ignore-not-found")
        volumes.delete_volume(f"{place.names}-{name}")


@pytest.mark.parametrize("retain", FINISHED)
def test_a_finished_job_goes_when_its_time_is_over(finishing: None, retain: str, place: Place) -> None:
    name = f"finished-{retain.lower()}"
    claim = f"pvc/{name}-checkpoint"
    wait_gone(place, f"stj/{name}")
    wait_without_pods(place, name)
    wait_until(
        f"{name} told as completed",
        lambda: "Completed" in [each["reason"] for each in events(place.namespace, name)],
        timeout=30,
        seen=lambda: kubectl("-n", place.namespace, "get", "events")[1],
    )
    if FINISHED[retain]:
        assert "ownerReferences" not in get(claim, "-n", place.namespace)[0]["metadata"]
    else:
        wait_gone(place, claim)


def test_retain_takes_effect_when_it_is_changed(place: Place) -> None:
    applied(gang(place, "retained", "Always"))
    wait_opened(place.namespace, "retained")
    claim = "pvc/retained-checkpoint"

    def owners() -> list[str]:
        return [
            each["kind"]
            for each in get(claim, "-n", place.namespace)[0]["metadata"].get("ownerReferences", [])
        ]

    def change(retain: str, wanted: list[str]) -> None:
        patched(place.namespace, "stj/retained", {"spec": {"checkpoint": {"retain": retain}}})
        wait_for(place.namespace, "retained", f"its claim owned by {wanted}", lambda: owners() == wanted)

    change("Never", ["SpotTrainingJob"])
    change("Always", [])
    change("Never", ["SpotTrainingJob"])
    kubectl("-n", place.namespace, "delete", "stj", "retained")
    wait_gone(place, claim)


def test_somebody_elses_job_is_left_alone(place: Place) -> None:
    applied(place.job("foreign", managedBy="example.org/other"))
    # Made after it: once the operator has looked at this one, it has passed the other.
    applied(place.job("ours"))
    wait_reason(place.namespace, "ours", "ClaimNotFound")
    assert status(place.namespace, "foreign") == {}
    assert pods(place.namespace, "foreign") == []
    assert events(place.namespace, "foreign") == []


def test_a_job_that_is_suspended_from_the_start_waits_for_the_word(place: Place) -> None:
    applied(place.job("suspended", suspend=True))
    condition = wait_reason(place.namespace, "suspended", "Suspended")
    assert "set it to false to go on" in condition["message"]
    state = status(place.namespace, "suspended")
    assert state["phase"] == "Suspended"
    assert "current" not in state
    wait_for(
        place.namespace,
        "suspended",
        "the condition Suspended",
        lambda: any(
            each["type"] == "Suspended" and each["status"] == "True"
            for each in status(place.namespace, "suspended")["conditions"]
        ),
    )


def test_the_sample_that_knows_nothing_of_us_goes_on_where_it_was_stopped(place: Place) -> None:
    text = (install.ROOT / "manifests" / "samples" / "no-library.yaml").read_text()
    loop = 'while [ "$step" -lt 100 ]; do sleep 1;'
    assert loop in text
    made = yaml.safe_load(text.replace(loop, 'while [ "$step" -lt 4 ]; do echo "$step"; sleep 1;'))
    container = "spec.template.spec.containers.0"
    made = changed(
        made,
        {
            "metadata.namespace": place.namespace,
            "spec.pools": [place.here],
            f"{container}.image": install.TRAINING_IMAGE,
            f"{container}.imagePullPolicy": "IfNotPresent",
        },
    )
    volume = f"{place.names}-sample"
    saved = volumes.make_volume(volume, "1Mi", claim=(place.namespace, "checkpoints")) / "step"
    volumes.make_claim(place.namespace, "checkpoints", volume, "1Mi")
    try:
        applied(made)
        wait_for(place.namespace, "no-library", "a first step saved", saved.exists)
        kubectl("-n", place.namespace, "delete", "pod", "no-library-1-0", "--wait=false")
        wait_for(
            place.namespace,
            "no-library",
            "ended well",
            lambda: status(place.namespace, "no-library").get("phase") == "Succeeded",
        )
        state = status(place.namespace, "no-library")
        assert (state["disruptions"], state["failures"], state["current"]["attempt"]) == (1, 0, 2)
        assert saved.read_text() == "4\n"
        _, printed, _ = kubectl("-n", place.namespace, "logs", "no-library-2-0")
        assert [int(line) for line in printed.split()] == list(range(int(printed.split()[0]), 4))
        assert int(printed.split()[0]) > 0, "attempt 2 began anew"
    finally:
        kubectl("-n", place.namespace, "delete", "stj", "no-library", "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", "checkpoints")
        volumes.delete_volume(volume)


def test_a_job_starts_from_the_checkpoints_of_another_and_cannot_touch_them(
    resuming: Resuming, place: Place
) -> None:
    for name in RESUMING:
        wait_succeeded(place, name)
    assert resuming.copied.read_text() == "7\n"
