"""What the user changes while the job lives: its size, its template, what is kept of it; and going back a version."""

import asyncio
from typing import Any, cast

import pytest

from spot_training.api.pool import SpotPoolStatus
from spot_training.api.status import SpotTrainingJobStatus
from spot_training.cluster.client import Client
from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod, DisownClaim, OwnClaim
from spot_training.control.apply import Applier
from spot_training.control.cache import Cache
from spot_training.control.read import read_claim
from spot_training.control.world import Claim, Refusal
from tests.unit.control.build import UID, Scene, job, pool, spec
from tests.unit.control.objects import Json, raw_job

# Size


def test_replicas_may_be_changed_while_it_is_suspended() -> None:
    scene = Scene(spec(1)).started().edit(suspend=True).run()
    scene.edit(replicas=2).run()
    assert scene.status.ready == "1/1", "the attempt that still stops has one pod"
    scene.exit(143).run()
    assert (scene.status.phase, scene.status.ready) == ("Suspended", "0/2")
    scene.edit(suspend=False)
    scene.started()
    assert (scene.current.attempt, scene.current.replicas, scene.status.ready) == (2, 2, "2/2")


def test_an_attempt_is_completed_at_the_size_it_was_opened_with() -> None:
    scene = Scene(spec(2)).run()
    scene.remove(1, tombstone=False)
    scene.edit(suspend=True).edit(replicas=3)
    made = manifests.pod(scene.job, 1, 1, pool("a"), scene.current)
    told = {each["name"]: each["value"] for each in made["spec"]["containers"][0]["env"]}
    assert told["WORLD_SIZE"] == "2"


def test_a_change_of_size_that_nobody_saw_suspended_makes_a_new_attempt() -> None:
    scene = Scene(spec(2)).started().edit(replicas=1).run()
    assert (scene.stop.cause, scene.stop.cls) == ("Resized", "Suspended")
    assert "spec.replicas is 1, and the attempt has 2 pods" in scene.condition().message
    scene.exit(143, 0).exit(143, 1).run()
    assert (scene.current.attempt, scene.current.replicas, scene.counts) == (2, 1, (0, 0))


def test_a_status_of_before_this_was_recorded_still_means_what_the_spec_says() -> None:
    scene = Scene(spec(2)).started()
    older = scene.current.model_copy(update={"replicas": None, "generation": None})
    scene.job = job(scene.job.spec, status=scene.status.model_copy(update={"current": older}))
    scene.run()
    assert (scene.status.phase, scene.status.ready, scene.current.stop) == ("Running", "2/2", None)


# Template


def test_a_change_of_the_template_takes_effect_with_the_next_attempt() -> None:
    scene = Scene().started()
    about = scene.job.spec.to_json()["template"]
    about["spec"]["containers"][0]["image"] = "train:2"
    scene.edit(template=about).run()
    assert (scene.status.phase, scene.current.attempt, scene.current.generation) == ("Running", 1, 1)
    scene.exit(143, deleting=True).run()
    assert (scene.current.attempt, scene.current.generation) == (2, 2)
    made = manifests.pod(scene.job, 2, 0, pool("a"), scene.current)
    assert made["spec"]["containers"][0]["image"] == "train:2"


# What is kept


def keeping(retain: str, **claim: Any) -> Scene:
    made = spec().to_json()
    template = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    made["checkpoint"] = {
        "mountPath": "/ckpt",
        "retain": retain,
        "claimTemplate": template,
        "writer": "Library",
    }
    scene = Scene(type(spec()).model_validate(made))
    scene.claim = Claim("job-checkpoint", "u", **({"made_for": "job"} | claim))
    return scene


CHANGES: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("Never", {}, [OwnClaim("job-checkpoint")]),
    ("Never", {"owner_uids": (UID,)}, []),
    ("Always", {"owner_uids": (UID,)}, [DisownClaim("job-checkpoint", "u")]),
    ("OnFailure", {"owner_uids": (UID,)}, [DisownClaim("job-checkpoint", "u")]),
    ("Always", {}, []),
    ("Never", {"made_for": ""}, []),
    ("Never", {"made_for": "another"}, []),
    ("Never", {"deleting": True}, []),
    ("Always", {"owner_uids": (UID, "another")}, []),
]


@pytest.mark.parametrize(("retain", "claim", "wanted"), CHANGES)
def test_retain_takes_effect_whenever_it_is_changed(
    retain: str, claim: dict[str, Any], wanted: list[Any]
) -> None:
    scene = keeping("Always").started()
    scene.claim = Claim("job-checkpoint", "u", **({"made_for": "job"} | claim))
    checkpoint = scene.job.spec.checkpoint.to_json() | {"retain": retain}
    assert scene.edit(checkpoint=checkpoint).step() == wanted


def test_retain_takes_effect_on_a_job_that_has_ended() -> None:
    scene = keeping("Always").started().exit(0)
    assert scene.step() == []
    checkpoint = scene.job.spec.checkpoint.to_json()
    assert scene.edit(checkpoint=checkpoint | {"retain": "Never"}).step() == [OwnClaim("job-checkpoint")]


def test_a_claim_that_the_user_made_is_the_users() -> None:
    scene = Scene(spec(checkpoint={"retain": "Never"})).started()
    scene.claim = Claim("claim", "u")
    assert scene.step() == []


def test_whose_template_a_claim_was_made_from_is_read() -> None:
    made = manifests.claim(keeping("Always").job)
    made["metadata"]["uid"] = "u"
    assert read_claim(made).made_for == "job"


class Server:
    """Notes what is patched."""

    def __init__(self) -> None:
        self.patched: list[tuple[str, Json]] = []

    async def patch(self, path: str, body: Json) -> Json:
        self.patched.append((path, body))
        return {"metadata": {"name": "c", "namespace": "ns", "uid": "u", "resourceVersion": "9"}}


def test_giving_a_claim_up_is_bound_to_the_claim_that_was_seen() -> None:
    server = Server()
    asyncio.run(Applier(cast(Client, server), Cache()).perform(job(), [DisownClaim("c", "u")]))
    path = "/api/v1/namespaces/ns/persistentvolumeclaims/c"
    assert server.patched == [(path, {"metadata": {"uid": "u", "ownerReferences": None}})]


# Refused in the middle


def test_a_gang_of_which_a_quota_refuses_some_pods_gives_the_others_back_and_waits() -> None:
    scene = Scene(spec(2, pools=["a"]))
    for count in range(1, 4):
        scene.run()
        number = scene.current.attempt
        scene.remove(1, tombstone=False)
        scene.obstacle, scene.refused = (
            "not all could be created: 403 Forbidden: exceeded quota: gpus",
            number,
        )
        scene.run()
        assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "PodsRefused")
        assert scene.pod(0).deleting
        scene.obstacle, scene.refused = "", 0
        scene.remove(0).run()
        assert scene.why() == ("False", "PodsRefused")
        assert "exceeded quota: gpus" in scene.condition().message
        due = scene.left(scene.status.next_try_at)
        assert 0 < due <= 10 * 2 ** (count - 1)
        scene.dry_run = Refusal("exceeded quota", temporary=True)
        scene.run(due)
        assert scene.current.attempt == number, "a dry run comes first, so that no pod is made in vain"
        scene.dry_run = True
        scene.run(15)
        assert scene.current.attempt == number + 1
    assert (scene.counts, scene.status.demoted_pools) == ((0, 0), [])


def test_a_quota_that_refuses_a_pod_while_its_peer_starts_is_no_disruption() -> None:
    scene = Scene(spec(2)).run().remove(1, tombstone=False)
    scene.change(0, started_at=scene.now, running=True)
    scene.obstacle, scene.refused = "not all could be created: 403 Forbidden: exceeded quota: gpus", 1
    scene.run()
    assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "PodsRefused")
    scene.exit(143, 0).run()
    assert scene.counts == (0, 0)


def test_a_refusal_of_any_length_fits_the_status() -> None:
    scene = Scene(spec(2)).run()
    scene.remove(1, tombstone=False)
    scene.obstacle, scene.refused = "exceeded quota: " + "x" * 5000, 1
    scene.run()
    assert scene.stop.cause == "PodsRefused"
    assert len(scene.stop.message) == 1024


def test_another_obstacle_is_tried_again_in_the_same_attempt() -> None:
    scene = Scene(spec(2)).run()
    scene.remove(1, tombstone=False)
    scene.obstacle = "not all could be created: 500 InternalError: etcd"
    assert CreatePod(1) in scene.step()


# Pods that no node will have


def test_an_unbound_pod_that_is_being_deleted_holds_nothing_up_however_long_a_finalizer_keeps_it() -> None:
    scene = Scene(spec(checkpoint={"writer": "Other"})).run().change(node="", phase="Pending")
    scene.edit(suspend=True).run()
    assert scene.pod().deleting
    scene.run()
    assert scene.current.end is not None


# Jobs of others


def test_a_job_that_another_controller_manages_takes_no_part() -> None:
    cache = Cache()
    raw = raw_job(current={"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"})
    raw["spec"]["managedBy"] = "example.org/other"
    cache.jobs.put(raw)
    ours = raw_job("ours", "j-2")
    cache.jobs.put(ours)
    cache.pools.put(
        {"metadata": {"name": "a", "uid": "p", "resourceVersion": "1"}, "spec": {"nodeSelector": {"p": "a"}}}
    )
    assert cache.waiting() == [("ns", "ours")]
    assert cache.reservations() == ()
    assert cache.world(cache.jobs.items["ns", "ours"]).claim_user == ""


# Going back a version


def test_what_a_newer_version_has_written_into_a_status_is_passed_over() -> None:
    status: Json = {
        "phase": "Running",
        "novelty": {"a": 1},
        "current": {"attempt": 2, "pool": "a", "openedAt": "2026-04-08T05:00:00Z", "warm": True},
        "timeline": [{"attempt": 1, "reason": "Reclaimed", "colour": "red"}],
        "conditions": [
            {
                "type": "Running",
                "status": "True",
                "reason": "Running",
                "lastTransitionTime": "2026-04-08T05:00:00Z",
                "severity": "low",
            }
        ],
    }
    read = SpotTrainingJobStatus.model_validate(status)
    assert read.current is not None
    assert (read.current.attempt, read.timeline[0].reason) == (2, "Reclaimed")
    assert "novelty" not in read.as_read(), "a merge patch leaves alone what it does not name"
    assert SpotPoolStatus.model_validate({"nodes": {"total": 1, "warm": 2}, "score": "1"}).nodes.total == 1
