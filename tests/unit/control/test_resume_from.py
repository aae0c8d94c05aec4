"""Starting from another job's checkpoints: its claim mounted read-only, or the reason why it cannot be."""

from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod
from spot_training.control.cache import Cache
from spot_training.control.world import Ask, Claim, Requirement, Source
from spot_training.train.environment import Settings
from tests.unit.control.build import Scene, node, pool, spec
from tests.unit.control.objects import Json, raw_job, raw_pod

MANY, ONCE, ONE_POD = (Claim("old-ckpt", "u", modes=(mode,)) for mode in (
    "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"
))  # fmt: skip


def resuming(claim: Claim | None, replicas: int = 1, gpus: int = 2, **source: Any) -> Scene:
    scene = Scene(spec(replicas, gpus, checkpoint={"resumeFrom": {"job": "old"}}))
    about: dict[str, Any] = {"job": "old", "known": True, "claim_name": "old-ckpt", "claim": claim}
    scene.source = Source(**(about | source))
    return scene


def test_the_other_jobs_claim_is_mounted_read_only_and_the_library_finds_it() -> None:
    scene = resuming(MANY)
    assert scene.step() == [CreatePod(0)]
    assert scene.current.resume_claim == "old-ckpt"
    made = manifests.pod(scene.job, 1, 0, pool("a"), scene.current)["spec"]
    (volume,) = [each for each in made["volumes"] if each["name"] == "spot-resume"]
    assert volume["persistentVolumeClaim"] == {"claimName": "old-ckpt", "readOnly": True}
    (mount,) = [each for each in made["containers"][0]["volumeMounts"] if each["name"] == "spot-resume"]
    assert mount["readOnly"] is True
    told = Settings.read({each["name"]: each["value"] for each in made["containers"][0]["env"]})
    assert str(told.resume_dir) == mount["mountPath"]
    assert str(told.checkpoint_dir) == "/ckpt"


def test_without_it_there_is_no_such_volume() -> None:
    scene = Scene()
    scene.step()
    made = manifests.pod(scene.job, 1, 0, pool("a"), scene.current)["spec"]
    assert [each["name"] for each in made["volumes"]] == ["spot-checkpoint"]
    assert "SPOT_RESUME_DIR" not in {each["name"] for each in made["containers"][0]["env"]}


def test_a_job_on_the_very_same_claim_finds_the_checkpoints_by_itself() -> None:
    scene = resuming(MANY, claim_name="claim")
    scene.step()
    assert scene.current.resume_claim is None


REFUSED: list[tuple[str, Claim | None, int, dict[str, Any], str]] = [
    ("no job", None, 1, {"known": False}, "there is neither a job old nor a claim old-ckpt that it has left"),
    ("no claim", None, 1, {}, "claim old-ckpt of job old is not there"),
    ("going", Claim("old-ckpt", "u", deleting=True), 1, {}, "is being deleted"),
    ("unbound", Claim("old-ckpt", "u", phase="Pending"), 1, {}, "has no volume (phase Pending)"),
    ("lost", Claim("old-ckpt", "u", phase="Lost"), 1, {}, "has no volume (phase Lost)"),
    ("live", ONCE, 1, {"user": "old"}, "claim old-ckpt is ReadWriteOnce and in use by job old"),
    ("one pod", ONE_POD, 2, {}, "ReadWriteOncePod, which 2 pods cannot share"),
]


@pytest.mark.parametrize(
    ("claim", "replicas", "about", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_cannot_be_resumed_from_is_said_and_looked_at_again(
    claim: Claim | None, replicas: int, about: dict[str, Any], words: str
) -> None:
    scene = resuming(claim, replicas, **about)
    assert scene.step() == []
    assert scene.why() == ("False", "ResumeClaimUnavailable")
    message = scene.condition().message
    assert words in message
    assert "or remove resumeFrom" in message
    assert "next try within 30 s" in message
    assert scene.plan.wake_at == scene.now + 30
    scene.source = resuming(MANY).source
    scene.step(30)
    assert scene.current.resume_claim == "old-ckpt"
    assert scene.why("ClaimReady") == ("True", "ClaimReady")


def test_a_live_job_does_not_hinder_where_the_claim_can_be_shared() -> None:
    assert resuming(MANY, user="old").step() == [CreatePod(0)]


def test_a_claim_for_one_node_wants_the_gang_on_one_node() -> None:
    scene = resuming(ONCE, replicas=2)
    scene.step()
    assert (scene.current.one_node, scene.current.node) == (True, "a1")
    scene = resuming(ONCE, replicas=3)
    scene.step()
    assert scene.why() == ("False", "ClaimNotShareable")
    assert "a ReadWriteOnce claim (old-ckpt) is mounted" in scene.condition().message


def test_both_volumes_say_where_it_may_run() -> None:
    scene = resuming(Claim("old-ckpt", "u", volume="pv-old"))
    scene.claim = Claim("claim", "u", volume="pv-own")
    scene.volumes = {
        name: ((Requirement("zone", "In", zones),),)
        for name, zones in (("pv-old", ("z1", "z2")), ("pv-own", ("z2",)))
    }
    scene.nodes = {f"a{n}": node(f"a{n}", labels={"pool": "a", "zone": f"z{n}"}) for n in (1, 3)}
    scene.step()
    assert Ask.VOLUMES in scene.asked
    assert scene.why() == ("False", "NoCapacity")
    scene.nodes["a2"] = node("a2", labels={"pool": "a", "zone": "z2"})
    scene.step()
    assert scene.current.pool == "a"


# What the caches say of it


def cached(*jobs: Json, pod: Json | None = None) -> Cache:
    cache = Cache()
    new = raw_job("new", "j-new")
    new["spec"]["checkpoint"] |= {"claimName": "mine", "resumeFrom": {"job": "old"}}
    for raw in (new, *jobs):
        cache.jobs.put(raw)
    if pod is not None:
        cache.put_pod(pod)
    return cache


def source(cache: Cache) -> Source:
    found = cache.world(cache.jobs.items["ns", "new"]).source
    assert found is not None
    return found


OPEN: dict[str, Any] = {"current": {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}}


def test_the_claim_is_the_one_that_the_other_job_names() -> None:
    assert source(cached(raw_job("old", "j-old"))) == Source("old", True, "claim")
    assert source(cached(raw_job("old", "j-old", **OPEN))).user == "old"
    assert source(cached(raw_job("old", "j-old", phase="Succeeded", **OPEN))).user == ""


def test_a_job_that_is_gone_has_left_the_claim_of_its_template() -> None:
    assert source(cached()) == Source("old", False, "old-checkpoint")


def test_a_pod_that_still_runs_uses_the_claim() -> None:
    pod = raw_pod("old-1-0")
    pod["metadata"]["ownerReferences"][0]["name"] = "old"
    pod["spec"]["volumes"] = [
        {"name": "spot-checkpoint", "persistentVolumeClaim": {"claimName": "old-checkpoint"}}
    ]
    assert source(cached(pod=pod)).user == "old"
