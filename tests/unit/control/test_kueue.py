"""Jobs that wait in a queue of Kueue's, against its documented contract for groups of plain pods."""

import dataclasses
from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod, CreateService
from spot_training.control.cache import Cache
from spot_training.control.read import read_job, read_pod
from tests.unit.control.build import GPU, NOW, Scene, pool, spec
from tests.unit.control.objects import Json, raw_job, raw_pod

GATED = "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"


def queued(replicas: int = 2, **fields: Any) -> Scene:
    """A job in a queue of a cluster without a free GPU."""
    scene = Scene(spec(replicas, **fields), queue="team", priority_class="low")
    scene.used = {(name, GPU): 4 for name in scene.nodes}
    return scene


def gate(scene: Scene) -> Scene:
    """Kueue's webhook has gated the pods of the attempt: no node has them."""
    scene.run()
    for index in range(scene.job.replicas):
        scene.change(index, node="", gated=True, trouble=GATED)
    return scene


def admit(scene: Scene) -> Scene:
    for index in range(scene.job.replicas):
        scene.change(index, gated=False, trouble="")
    return scene


def test_its_pods_are_made_though_no_gpu_is_free() -> None:
    scene = queued()
    assert scene.step() == [CreateService(), CreatePod(0), CreatePod(1)]
    assert (scene.current.queue, scene.current.pool) == ("team", "a")


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_pods_of_an_attempt_are_a_group_of_their_own(replicas: int) -> None:
    scene = queued(replicas)
    scene.step()
    made = [
        manifests.pod(scene.job, 1, index, pool("a"), scene.current)["metadata"] for index in range(replicas)
    ]
    for metadata in made:
        assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert metadata["labels"]["kueue.x-k8s.io/priority-class"] == "low"
        assert metadata["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == str(replicas)
        assert metadata["annotations"]["kueue.x-k8s.io/retriable-in-group"] == "false"
        assert metadata["annotations"]["karpenter.sh/do-not-disrupt"] == "true", "what else is there stays"
    groups = {metadata["labels"]["kueue.x-k8s.io/pod-group-name"] for metadata in made}
    assert groups == {"job-job-uid-1"}
    later = scene.current.model_copy(update={"attempt": 2})
    group = manifests.pod(scene.job, 2, 0, pool("a"), later)["metadata"]["labels"][
        "kueue.x-k8s.io/pod-group-name"
    ]
    assert group == "job-job-uid-2"


def test_the_longest_name_makes_a_label_still() -> None:
    scene = queued()
    scene.step()
    about = dataclasses.replace(scene.job, name="a" * 48, uid="01234567-89ab-cdef-0123-456789abcdef")
    opened = scene.current.model_copy(update={"attempt": 999_999})
    labels = manifests.pod(about, 999_999, 0, pool("a"), opened)["metadata"]["labels"]
    assert max(len(value) for value in labels.values()) <= 63


def test_without_a_queue_there_is_nothing_of_kueue() -> None:
    scene = Scene()
    scene.step()
    metadata = manifests.pod(scene.job, 1, 0, pool("a"), scene.current)["metadata"]
    assert not [key for key in metadata["labels"] | metadata["annotations"] if "kueue" in key]


def test_while_it_waits_the_job_says_where_and_no_timeout_runs() -> None:
    scene = gate(queued(provisionTimeoutSeconds=100))
    scene.step()
    assert (scene.status.phase, scene.why()) == ("Pending", ("False", "Queued"))
    said = scene.condition().message
    assert "waiting in Kueue's queue team" in said
    metadata = manifests.pod(scene.job, 1, 0, pool("a"), scene.current)["metadata"]
    group = metadata["labels"]["kueue.x-k8s.io/pod-group-name"]
    assert f"`kubectl -n {scene.job.namespace} describe workload {group}` says for what" in said
    assert scene.plan.wake_at is None
    scene.step(10_000)
    assert (scene.current.attempt, scene.current.stop, scene.current.admitted_at) == (1, None, None)


def test_the_timeout_begins_with_the_admission() -> None:
    scene = gate(queued(provisionTimeoutSeconds=100))
    scene.run(5000)
    admit(scene).run(10)
    assert scene.left(scene.current.admitted_at) == 0
    assert [story.reason for story in scene.plan.stories] == ["Admitted"]
    assert scene.plan.wake_at == scene.now + 100
    scene.run(99)
    assert scene.current.stop is None
    scene.run(1)
    assert (scene.stop.cause, scene.counts) == ("ProvisionTimeout", (0, 0))
    scene.remove(0).remove(1).run()
    assert (scene.current.attempt, scene.current.pool, scene.current.queue) == (2, "b", "team")


def test_one_gate_that_is_left_holds_the_group() -> None:
    scene = gate(queued())
    scene.run()
    scene.change(0, gated=False, trouble="")
    scene.run()
    assert scene.current.admitted_at is None
    admit(scene).run()
    assert scene.current.admitted_at is not None


def test_admitted_and_running() -> None:
    scene = admit(gate(queued()))
    for index in (0, 1):
        scene.change(index, node=f"a{index + 1}", started_at=NOW, running=True)
    scene.run()
    assert (scene.status.phase, scene.why()) == ("Running", ("True", "Running"))


def test_an_evicted_group_is_a_disruption_and_queues_anew() -> None:
    scene = admit(gate(queued()))
    for index in (0, 1):
        scene.change(index, node=f"a{index + 1}", started_at=NOW, running=True)
    scene.run()
    for index in (0, 1):
        scene.exit(143, index, disruption="TerminationTarget", deleting=True)
    scene.run()
    assert (scene.counts, scene.status.timeline[-1].reason) == ((1, 0), "EvictedByKueue")
    assert (scene.current.attempt, scene.current.queue, scene.current.admitted_at) == (2, "team", None)
    gate(scene).run()
    assert (scene.status.phase, scene.why()) == ("Recovering", ("False", "Queued"))


def test_gated_pods_that_kueues_finalizer_keeps_hold_up_no_suspension() -> None:
    scene = gate(queued(checkpoint={"writer": "Other"}))
    scene.edit(suspend=True).run()
    assert all(pod.deleting for pod in scene.pods.values())
    scene.run()
    assert scene.current.end is not None


def test_another_queue_is_for_the_next_attempt() -> None:
    scene = queued()
    scene.step()
    moved = dataclasses.replace(scene.job, queue="other")
    labels = manifests.pod(moved, 1, 1, pool("a"), scene.current)["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team", "a group must be in one queue"


def test_an_edit_does_not_cost_the_place_in_the_queue() -> None:
    scene = gate(queued())
    scene.run()
    scene.edit(deadlineSeconds=99_999).run()
    assert (scene.current.attempt, scene.current.stop) == (1, None)


def test_gates_of_others_are_waited_for_too() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=10)).run()
    scene.change(node="", gated=True, trouble=GATED).run(1000)
    assert (scene.current.stop, scene.why()) == (None, ("False", "Queued"))
    assert "Kueue" not in scene.condition().message


# What is read, and what is reserved


def test_labels_of_the_job_and_gates_of_the_pod_are_read() -> None:
    job = raw_job()
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "low"}
    assert (read_job(job).queue, read_job(job).priority_class) == ("team", "low")
    assert (read_job(raw_job()).queue, read_job(raw_job()).priority_class) == ("", "")
    pod = raw_pod()
    assert not read_pod(pod).gated
    pod["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert read_pod(pod).gated


def test_what_waits_in_a_queue_reserves_nothing() -> None:
    def reserved(**current: Any) -> int:
        cache = Cache()
        raw: Json = raw_job(current={"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"} | current)
        raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {GPU: 1}}
        cache.jobs.put(raw)
        about = {
            "metadata": {"name": "a", "uid": "p", "resourceVersion": "1"},
            "spec": {"nodeSelector": {"p": "a"}},
        }
        cache.pools.put(about)
        return sum(each.pods for each in cache.reservations())

    assert reserved(queue="team") == 0
    assert reserved(queue="team", admittedAt="2026-04-08T05:01:00Z") == 2
    assert reserved() == 2
