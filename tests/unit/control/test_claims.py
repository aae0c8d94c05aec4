"""Claims that decide where pods may run: one node for a gang, one zone for a volume, one node at a time."""

from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.act import CreatePod, CreateService
from spot_training.control.policies.affinity import describe, matches, read_terms
from spot_training.control.read import read_claim
from spot_training.control.world import Ask, Claim, Requirement, Reservation
from tests.unit.control.build import GPU, NOW, Scene, node, pool, reclaim, shape, spec

ZONE = "topology.kubernetes.io/zone"
ONCE = Claim("claim", "u", modes=("ReadWriteOnce",))


def gang(replicas: int = 2, gpus: int = 2, **fields: Any) -> Scene:
    scene = Scene(spec(replicas, gpus, **fields))
    scene.claim = ONCE
    return scene


# One node for the whole gang


def test_a_gang_on_a_read_write_once_claim_gets_one_node_that_holds_it() -> None:
    scene = gang()
    scene.used = {("a1", GPU): 1}
    assert scene.step() == [CreateService(), CreatePod(0), CreatePod(1)]
    assert (scene.current.pool, scene.current.one_node, scene.current.node) == ("a", True, "a2")


def test_of_the_nodes_that_hold_it_the_fullest_is_taken() -> None:
    scene = gang()
    scene.nodes["a3"] = node("a3", gpus=8)
    scene.nodes["a4"] = node("a4", gpus=6)
    scene.used = {("a1", GPU): 1, ("a2", GPU): 4, ("a4", GPU): 1}
    scene.step()
    assert scene.current.node == "a4"


def test_room_on_several_nodes_is_no_room_for_it() -> None:
    scene = gang(pools=["a"])
    scene.used = {("a1", GPU): 2, ("a2", GPU): 2}
    assert scene.step() == []
    assert scene.why() == ("False", "NoCapacity")
    message = scene.condition("CapacityAvailable").message
    assert "2 pods of 2 nvidia.com/gpu do not fit on one node" in message
    assert "at most 2 free on one of 2 nodes" in message
    scene.used = {("a1", GPU): 2}
    scene.step()
    assert scene.current.node == "a2"


def test_a_claim_that_no_node_is_large_enough_for_is_not_shareable() -> None:
    scene = gang(replicas=3)
    assert scene.step() == []
    assert scene.why() == ("False", "ClaimNotShareable")
    message = scene.condition().message
    assert "all 3 pods must be on one node, and the largest node of the pools has 4 GPUs" in message
    assert "use a ReadWriteMany claim, or fewer replicas" in message
    scene.nodes["b3"] = node("b3", "b", gpus=6)
    scene.step()
    assert (scene.current.pool, scene.current.node) == ("b", "b3")
    assert scene.why("ClaimReady") == ("True", "ClaimReady")


def test_a_claim_for_one_pod_is_not_for_two() -> None:
    scene = gang()
    scene.claim = Claim("claim", "u", modes=("ReadWriteOncePod",))
    assert scene.step() == []
    assert scene.why() == ("False", "ClaimNotShareable")
    assert "is ReadWriteOncePod, which 2 pods cannot share" in scene.condition().message


def test_one_pod_on_a_read_write_once_claim_is_free_to_go() -> None:
    scene = gang(1)
    scene.step()
    assert (scene.current.one_node, scene.current.node) == (None, None)


def test_what_another_gang_has_reserved_on_a_node_is_taken_there_and_nowhere_else() -> None:
    scene = gang(pools=["a"])
    scene.reservations = (Reservation("a", shape(2), 2, "a1"),)
    scene.step()
    assert scene.current.node == "a2"


def test_its_pods_go_to_that_node_and_stay_together() -> None:
    scene = gang()
    own = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "x", "operator": "Exists"}]}]}
    scene.step()
    about = spec(2, 2).to_json()
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    about["template"]["spec"]["affinity"] = {"nodeAffinity": {required: own}}
    wanted = type(spec()).model_validate(about)
    made = manifests.pod(Scene(wanted).job, 1, 1, pool("a"), scene.current)
    affinity = made["spec"]["affinity"]
    (term,) = affinity["nodeAffinity"][required]["nodeSelectorTerms"]
    assert term["matchExpressions"] == own["nodeSelectorTerms"][0]["matchExpressions"], "the user's stays"
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["a1"]}]
    (together,) = affinity["podAffinity"][required]
    assert together["topologyKey"] == "kubernetes.io/hostname"
    assert together["labelSelector"]["matchLabels"].items() <= made["metadata"]["labels"].items()
    assert about["template"]["spec"]["affinity"] == {"nodeAffinity": {required: own}}, (
        "the template is not touched"
    )


@pytest.mark.parametrize("what", ["taken", "cordoned", "gone"])
def test_a_chosen_node_that_goes_before_the_pods_are_there_is_left_at_once(what: str) -> None:
    scene = gang()
    scene.step()
    for index in (0, 1):
        scene.bind(index)
        scene.change(index, node="")
    match what:
        case "taken":
            scene.mark("a1", reclaim())
        case "cordoned":
            scene.on_node("a1", schedulable=False)
        case "gone":
            del scene.nodes["a1"]
    scene.run()
    assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "NodeLeft")
    scene.remove(0).remove(1).run()
    assert (scene.current.attempt, scene.current.node, scene.counts) == (2, "a2", (0, 0))
    assert scene.status.demoted_pools == [], "the pool is not to blame"


# Volumes that are somewhere


def zonal(*zones: str) -> tuple[tuple[Requirement, ...], ...]:
    return ((Requirement(ZONE, "In", zones),),)


def bound(scene: Scene, *zones: str) -> Scene:
    scene.claim = Claim("claim", "u", volume="pv-1")
    scene.volumes = {"pv-1": zonal(*zones) if zones else ()}
    return scene


def test_a_zonal_volume_restricts_the_pools_that_qualify_and_the_condition_says_so() -> None:
    scene = bound(Scene(), "z2")
    for name in scene.nodes:
        scene.on_node(name, labels={"pool": name[0], ZONE: "z1" if name[0] == "a" else "z2"})
    scene.step()
    assert Ask.VOLUMES in scene.asked
    assert scene.current.pool == "b"
    assert f"a: to none of its 2 usable nodes can the job's volumes be attached ({ZONE} In [z2])" in (
        scene.condition("CapacityAvailable").message
    )


def test_where_no_pool_is_in_the_volumes_zone_the_job_waits_and_says_why() -> None:
    scene = bound(Scene(), "z3")
    assert scene.step() == []
    assert scene.why() == ("False", "NoCapacity")
    assert f"{ZONE} In [z3]" in scene.condition().message
    scene.on_node("b2", labels={"pool": "b", ZONE: "z3"})
    scene.step()
    assert scene.current.pool == "b"


@pytest.mark.parametrize("volume", ["", "pv-1"])
def test_a_volume_that_is_everywhere_or_nowhere_yet_restricts_nothing(volume: str) -> None:
    scene = bound(Scene()) if volume else Scene()
    assert scene.step() == [CreatePod(0)]
    assert (Ask.VOLUMES in scene.asked) is bool(volume)


def test_while_an_attempt_starts_its_volumes_are_known_for_what_it_reserves() -> None:
    scene = bound(Scene(), "z1")
    for name in scene.nodes:
        scene.on_node(name, labels={"pool": name[0], ZONE: "z1"})
    scene.run()
    scene.run()
    assert Ask.VOLUMES in scene.asked, "another operator may lead by now, which knows nothing"
    scene.change(started_at=scene.now, running=True).run()
    scene.run()
    assert Ask.VOLUMES not in scene.asked


def test_a_gang_of_one_node_and_a_volume_of_one_zone() -> None:
    scene = gang(pools=["a"])
    scene.claim = Claim("claim", "u", modes=("ReadWriteOnce",), volume="pv-1")
    scene.volumes = {"pv-1": zonal("z2")}
    scene.on_node("a2", labels={"pool": "a", ZONE: "z2"})
    scene.step()
    assert scene.current.node == "a2"


TERMS: list[tuple[dict[str, Any] | None, bool]] = [
    (None, True),
    ({"nodeSelectorTerms": []}, True),
    ({"nodeSelectorTerms": [{}]}, False),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["z1"]}]}]},
        True,
    ),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["z2"]}]}]},
        False,
    ),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "NotIn", "values": ["z2"]}]}]},
        True,
    ),
    (
        {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "other", "operator": "NotIn", "values": ["x"]}]}
            ]
        },
        True,
    ),
    ({"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "Exists"}]}]}, True),
    ({"nodeSelectorTerms": [{"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}]}, True),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["2"]}]}]},
        True,
    ),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": "Lt", "values": ["2"]}]}]},
        False,
    ),
    (
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "other", "operator": "Gt", "values": ["2"]}]}]},
        False,
    ),
    (
        {
            "nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}
            ]
        },
        True,
    ),
    (
        {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": ZONE, "operator": "Exists"},
                        {"key": "other", "operator": "Exists"},
                    ]
                },
                {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["m"]}]},
            ]
        },
        True,
    ),
]


@pytest.mark.parametrize(("selector", "fits"), TERMS)
def test_terms_mean_what_they_mean_to_the_scheduler(selector: dict[str, Any] | None, fits: bool) -> None:
    terms = read_terms(selector)
    assert matches(terms, node("n", labels={ZONE: "z1", "gen": "3"})) is fits, describe(terms)


def test_a_templates_own_node_affinity_restricts_the_pool() -> None:
    made = spec(pools=["a"]).to_json()
    term = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h200"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    made["template"]["spec"]["affinity"] = {"nodeAffinity": required}
    scene = Scene(spec(**made))
    scene.step()
    assert scene.why() == ("False", "NoCapacity")
    scene.on_node("a2", labels={"pool": "a", "gpu": "h200"})
    assert scene.step() == [CreatePod(0)]


def test_the_volume_of_a_claim_is_read() -> None:
    raw = {
        "metadata": {"name": "c", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "pv-1"},
    }
    assert read_claim(raw).volume == "pv-1"


# One node at a time


def test_while_the_volume_comes_from_another_node_the_condition_says_so() -> None:
    scene = gang(1, gpus=4, checkpoint={"writer": "Library"}).started()
    scene.on_node("a1", ready=False, ready_since=NOW).run(60)
    assert scene.current.attempt == 2
    (new,) = [each for each in scene.pods.values() if each.attempt == 2]
    assert new.node != "a1"
    scene.step(1)
    assert scene.why() == ("False", "VolumeDetaching")
    assert f"its volume goes from node a1 to {new.node}" in scene.condition().message
    assert "node.kubernetes.io/out-of-service" in scene.condition().message
    scene.change(started_at=scene.now, running=True).step()
    assert scene.why() == ("True", "Running")
