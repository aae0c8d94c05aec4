"""The library brought by an init container into an image that has none."""

from pathlib import Path
from typing import Any

import yaml

from tests.kit import install, jobs

SAMPLE = install.ROOT / "manifests" / "samples" / "library-volume.yaml"
NAME = "library-volume"


def _sample() -> dict[str, Any]:
    """The sample, with the images and the claim that are here, and fewer steps."""
    job: dict[str, Any] = yaml.safe_load(Path(SAMPLE).read_text())
    pod = job["spec"]["template"]["spec"]
    [bringer], [trainer] = pod["initContainers"], pod["containers"]
    bringer |= {"image": install.OPERATOR_IMAGE, "imagePullPolicy": "IfNotPresent"}
    trainer |= {"image": install.TRAINING_IMAGE, "imagePullPolicy": "IfNotPresent"}
    trainer["command"] = [word.replace("--steps=1000", "--steps=50") for word in trainer["command"]]
    job["metadata"]["namespace"] = "default"
    job["spec"]["checkpoint"]["claimName"] = NAME
    return job


def test_a_job_trains_with_the_library_that_an_init_container_brought() -> None:
    jobs.remove(NAME)
    jobs.fresh_claim(NAME)
    job = _sample()
    # The volume lies over the place where the image has its own copy: there is no other library in the container.
    [mount] = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert mount["mountPath"] == "/opt/spot-training"
    jobs.start(job)
    state = jobs.wait_finished(NAME)
    assert state["phase"] == "Succeeded", jobs.describe(NAME)
    assert state["checkpoint"]["step"] == 50, state
