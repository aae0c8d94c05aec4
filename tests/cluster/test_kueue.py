"""Jobs in the queues of a real Kueue, which admits their groups of plain pods, evicts them, and lets them go."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from spot_training.api.times import parse_time
from tests.cluster.objects import Json, changed, kubectl
from tests.cluster.scene import Place, applied, patched, pods, status, wait_for, wait_reason
from tests.kit import install, kueue, places, volumes
from tests.kit.kube import get
from tests.kit.shell import wait_until

CONTAINER: Final = "spec.template.spec.containers.0"
QUEUE: Final = "team"
SCRIPT: Final = "trap 'exit 143' TERM; until [ -e /mnt/checkpoint/go ]; do sleep 0.1; done"
"""Trains until it is told that it is done."""


@dataclass
class Queue:
    """A queue with quota for one gang of two, and gangs that want to run in it."""

    place: Place

    @property
    def namespace(self) -> str:
        return self.place.namespace

    def gang(self, name: str) -> None:
        volume = f"{self.place.names}-{name}"
        volumes.make_volume(volume, "1Mi", claim=(self.namespace, name))
        volumes.make_claim(self.namespace, name, volume, "1Mi")
        fields = {
            "metadata.labels": {"kueue.x-k8s.io/queue-name": QUEUE},
            f"{CONTAINER}.image": install.TRAINING_IMAGE,
            f"{CONTAINER}.command": ["sh", "-c", SCRIPT],
            f"{CONTAINER}.resources": {"limits": {"nvidia.com/gpu": 1}},
        }
        applied(changed(self.place.job(name, replicas=2), fields))

    def finish(self, name: str) -> None:
        """Have its program come to its end."""
        (places.SHARED / f"{self.place.names}-{name}" / "go").touch()
        self.phase(name, "Succeeded")

    def phase(self, name: str, phase: str) -> Json:
        wait_for(
            self.namespace, name, f"is {phase}", lambda: self.status(name).get("phase") == phase, timeout=60
        )
        return self.status(name)

    def status(self, name: str) -> Json:
        return status(self.namespace, name)

    def runs(self, name: str, attempt: int = 1) -> None:
        def happened() -> bool:
            found = self.status(name)
            return (found.get("phase"), (found.get("current") or {}).get("attempt")) == ("Running", attempt)

        wait_for(self.namespace, name, f"attempt {attempt} runs", happened, timeout=60)

    def stop(self, policy: str) -> None:
        """What an administrator does to the queue: `None`, `Hold`, or `HoldAndDrain`, which evicts who runs."""
        patched(
            "", f"clusterqueue/{kueue.cluster_queue(QUEUE, self.namespace)}", {"spec": {"stopPolicy": policy}}
        )

    def workloads(self, name: str) -> list[str]:
        """What Kueue has made of the job's first attempt."""
        return [
            each["metadata"]["name"]
            for each in kueue.workloads(self.namespace)
            if f"{name}-1-0" in {owner["name"] for owner in each["metadata"]["ownerReferences"]}
        ]

    def said(self, workload: str) -> list[str]:
        """What Kueue says of it."""
        (found,) = get(f"workloads.kueue.x-k8s.io/{workload}", "-n", self.namespace)
        return [each["message"] for each in found.get("status", {}).get("conditions", [])]

    def end(self) -> None:
        names = [each["metadata"]["name"] for each in get("pvc", "-n", self.namespace)]
        kubectl("-n", self.namespace, "delete", "stj", "--all", "--wait=true")
        kubectl("-n", self.namespace, "delete", "pods", "--all", "--wait=true", "--timeout=40s")
        kubectl("-n", self.namespace, "delete", "pvc", "--all", "--wait=true", "--timeout=20s")
        for name in names:
            volumes.delete_volume(f"{self.place.names}-{name}")


@pytest.fixture(scope="module")
def queue(place: Place) -> Iterator[Queue]:
    """Kueue with a queue, in which a job has been deleted that waited: how its pods go is seen at last."""
    made = Queue(place)
    with kueue.running(place.namespace):
        try:
            applied(*kueue.queue(QUEUE, place.namespace, gpus=2))
            made.stop("Hold")
            made.gang("deleted")
            wait_reason(place.namespace, "deleted", "Queued")
            assert len(pods(place.namespace, "deleted")) == 2
            kubectl("-n", place.namespace, "delete", "stj", "deleted", "--wait=true")
            made.stop("None")
            yield made
        finally:
            made.end()


def test_the_second_gang_waits_says_why_and_runs_when_the_first_has_ended(queue: Queue) -> None:
    queue.gang("first")
    queue.runs("first")
    queue.gang("second")
    condition = wait_reason(queue.namespace, "second", "Queued")
    assert f"waiting in Kueue's queue {QUEUE}" in condition["message"]
    assert queue.status("second")["phase"] == "Pending"
    # What the message names is there, it is one for both pods, and it is the quota that it waits for.
    wait_for(queue.namespace, "second", "has a workload", lambda: bool(queue.workloads("second")))
    (workload,) = queue.workloads("second")
    assert f"describe workload {workload}` says for what" in condition["message"]
    wait_for(
        queue.namespace,
        "second",
        "Kueue says that there is no quota",
        lambda: any("insufficient unused quota for nvidia.com/gpu" in each for each in queue.said(workload)),
    )
    queue.finish("first")
    queue.runs("second")
    queue.finish("second")
    for name in ("first", "second"):
        state = queue.status(name)
        assert (state["current"]["attempt"], state["failures"], state["disruptions"]) == (1, 0, 0)
        assert state["current"]["openedAt"] <= state["current"]["admittedAt"]
    ended, admitted = queue.status("first")["completionTime"], queue.status("second")["current"]["admittedAt"]
    assert parse_time(admitted) >= parse_time(ended) - 2, (
        "Kueue may see the pods' end before the operator does"
    )


def test_a_gang_that_kueue_evicts_is_disrupted_and_queues_again(queue: Queue) -> None:
    queue.gang("evicted")
    queue.runs("evicted")
    queue.stop("HoldAndDrain")
    condition = wait_reason(queue.namespace, "evicted", "Queued")
    assert f"waiting in Kueue's queue {QUEUE}" in condition["message"]
    state = queue.status("evicted")
    assert (state["phase"], state["failures"], state["disruptions"]) == ("Recovering", 0, 1)
    assert state["timeline"][0]["reason"] == "EvictedByKueue"
    queue.stop("None")
    queue.runs("evicted", attempt=2)
    queue.finish("evicted")
    assert queue.status("evicted")["disruptions"] == 1


def test_who_was_deleted_in_the_queue_has_left_nothing(queue: Queue) -> None:
    """Kueue keeps the pods by a finalizer until the cluster's collector calls them ended, every twenty seconds, and may
    count the quota as theirs until then: the first gang here waits for that.
    """
    wait_until(
        "the pods of the job that was deleted in the queue are gone",
        lambda: not pods(queue.namespace, "deleted"),
        timeout=40,
        seen=lambda: kubectl("-n", queue.namespace, "get", "pods,workloads", "-o", "yaml")[1],
    )
