"""A volume that is in one zone, and a job that may run in two, on nodes without machines."""

from collections.abc import Iterator

import pytest

from spot_training.api import names
from tests.cluster.fleet import done
from tests.cluster.objects import changed, job
from tests.cluster.scene import applied, pods, wait_for
from tests.cluster.test_pools import Scene, playing
from tests.kit import volumes
from tests.kit.kube import get, kubectl

ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
def scene(namespace: str) -> Iterator[Scene]:
    with playing(namespace) as made:
        yield made


def test_a_zonal_volume_steers_the_job_to_the_pool_in_its_zone(scene: Scene) -> None:
    """The pool that comes first has room, and is in the other zone."""
    full = f"{scene.name}-one"
    (far,) = scene.pool("far", 1)
    done("label", "node", far, f"{ZONE}={scene.name}-there")
    scene.pool("near")
    volumes.make_volume(
        full, "1Mi", "ReadWriteOnce", claim=(scene.namespace, full), zone=f"{scene.name}-here"
    )
    try:
        volumes.make_claim(scene.namespace, full, full, "1Mi")
        checkpoint = {"mountPath": "/mnt/checkpoint", "claimName": full}
        made = job(
            full,
            scene.namespace,
            pools=[f"{scene.name}-far", f"{scene.name}-near"],
            checkpoint=checkpoint,
        )
        limits = {"limits": {"nvidia.com/gpu": 4}}
        applied(changed(made, {"spec.template.spec.containers.0.resources": limits}))
        scene.waits(
            "one", "NoCapacity", "none of its 1 usable nodes", "volumes be attached", f"{scene.name}-here"
        )

        (near,) = scene.fleet.add(f"{scene.name}-near", 1)
        done("label", "node", near, f"{ZONE}={scene.name}-here")
        scene.opens("one", "near")
        wait_for(
            scene.namespace,
            full,
            "its pod bound there",
            lambda: [each["spec"].get("nodeName") for each in pods(scene.namespace, full)] == [near],
        )
        events = get("events", "-n", scene.namespace, "--field-selector", f"involvedObject.name={full}")
        opened = [each["message"] for each in events if each["reason"] == "AttemptStarted"]
        assert opened and all("passed over" in each and f"{scene.name}-far" in each for each in opened), (
            events
        )
    finally:
        scene.end("one")
        # No kubelet ends it, and the claim stays as long as it does.
        mine = ("-l", f"{names.LABEL_JOB}={full}")
        kubectl("-n", scene.namespace, "delete", "pods", *mine, "--grace-period=0", "--force")
        kubectl("-n", scene.namespace, "delete", "pvc", full)
        volumes.delete_volume(full)
