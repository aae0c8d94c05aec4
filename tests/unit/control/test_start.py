"""From nothing to running: capacity, claims, the dry run, pods."""

import dataclasses
import re
from collections.abc import Callable

import pytest

from spot_training.control.act import CreateClaim, CreatePod, CreateService, DeletePod
from spot_training.control.world import Ask, Claim, Exit, Refusal, Reservation
from tests.unit.control.build import GPU, NOW, Scene, node, pool, reclaim, shape, spec, taint


def test_the_first_attempt_opens() -> None:
    scene = Scene()
    assert scene.step() == [CreatePod(0)]
    assert (scene.current.attempt, scene.current.pool, scene.status.phase) == (1, "a", "Starting")
    assert scene.why("CapacityAvailable") == ("True", "PoolChosen")
    assert scene.why() == ("False", "Starting")


def test_a_gang_gets_its_service_before_its_pods() -> None:
    scene = Scene(spec(replicas=2))
    assert scene.step() == [CreateService(), CreatePod(0), CreatePod(1)]


def test_it_runs_once_all_ranks_have_started() -> None:
    scene = Scene(spec(replicas=2)).run()
    scene.change(0, started_at=NOW, running=True).step()
    assert (scene.status.phase, scene.status.ready, scene.current.running_at) == ("Starting", "1/2", None)
    scene.change(1, started_at=NOW, running=True).step()
    assert (scene.status.phase, scene.status.ready) == ("Running", "2/2")
    assert scene.why() == ("True", "Running")
    assert [(ref.index, ref.name, ref.uid) for ref in scene.current.nodes] == [
        (0, "a1", "a1-uid"),
        (1, "a2", "a2-uid"),
    ]
    assert scene.status.start_time is not None


def _no_pools(scene: Scene) -> None:
    scene.pools = {}


def _on_demand(scene: Scene) -> None:
    scene.pools = {name: pool(name, capacityType="OnDemand") for name in ("a", "b")}


def _no_nodes(scene: Scene) -> None:
    scene.nodes = {}


def _not_ready(scene: Scene) -> None:
    for name in scene.nodes:
        scene.on_node(name, ready=False)


def _marked(scene: Scene) -> None:
    for name in scene.nodes:
        scene.mark(name, reclaim())


def _cordoned(scene: Scene) -> None:
    for name in scene.nodes:
        scene.on_node(name, schedulable=False)


def _tainted(scene: Scene) -> None:
    for name in scene.nodes:
        scene.on_node(name, taints=(taint(GPU),))


def _used(scene: Scene) -> None:
    scene.used = {(name, GPU): 1 for name in scene.nodes}


def _reserved(scene: Scene) -> None:
    scene.reservations = (Reservation("a", shape(4), 2), Reservation("b", shape(1), 5))


WAITS: list[tuple[Callable[[Scene], None], str, str]] = [
    (_no_pools, "PoolNotFound", "no such SpotPool"),
    (_on_demand, "OnDemandNotAllowed", "onDemand.policy is Never"),
    (_no_nodes, "NoCapacity", "no node matches its nodeSelector"),
    (_not_ready, "NoCapacity", "none of its 2 nodes is ready"),
    (_marked, "NoCapacity", "none of its 2 nodes is ready and free of notices"),
    (_cordoned, "NoCapacity", "none of its 2 nodes is ready"),
    (_tainted, "NoCapacity", "none of its 2 nodes is ready"),
    (_used, "NoCapacity", "6 free on 2 nodes, room for 0"),
    (_reserved, "NoCapacity", "do not fit"),
]


@pytest.mark.parametrize(("change", "reason", "words"), WAITS, ids=lambda each: getattr(each, "__name__", ""))
def test_it_waits_for_capacity_and_says_why_for_each_pool(
    change: Callable[[Scene], None], reason: str, words: str
) -> None:
    scene = Scene()
    change(scene)
    assert scene.step() == []
    assert scene.status.current is None
    assert scene.why("CapacityAvailable") == ("False", reason)
    assert scene.why() == ("False", reason)
    assert {"a", "b"} <= set(re.findall(r"\b[ab](?=: |, )", scene.condition("CapacityAvailable").message))
    assert words in scene.condition("CapacityAvailable").message
    assert [each.reason for each in scene.plan.stories] == [reason]
    scene.step(30)
    assert scene.plan.stories == ()


def test_no_pools_given_and_none_there() -> None:
    scene = Scene(spec(pools=[]))
    scene.pools = {}
    scene.step()
    assert scene.why() == ("False", "PoolNotFound")
    assert "create one" in scene.condition().message


def test_pools_are_tried_in_the_users_order() -> None:
    scene = Scene(spec(pools=["b", "a"]))
    scene.step()
    assert scene.current.pool == "b"


def test_with_no_pools_given_every_spot_pool_the_cheapest_first() -> None:
    scene = Scene(spec(pools=[]))
    scene.pools = {
        "a": pool("a", pricePerNodeHour="2.50"),
        "b": pool("b", pricePerNodeHour="10.00", capacityType="OnDemand"),
        "c": pool("c", pricePerNodeHour="0.90"),
    }
    scene.step()
    assert scene.current.pool == "a", "c has no node"
    assert scene.condition("CapacityAvailable").message.startswith("pool a (passed over: c:")


def test_a_full_pool_is_passed_over_and_the_condition_says_so() -> None:
    scene = Scene()
    scene.used = {("a1", GPU): 4, ("a2", GPU): 4}
    scene.step()
    assert scene.current.pool == "b"
    assert "passed over: a: " in scene.condition("CapacityAvailable").message


@pytest.mark.parametrize(
    ("free", "gpus", "replicas", "fits"),
    [
        ((4, 4), 4, 2, True),
        ((4, 3), 4, 2, False),
        ((2, 2), 4, 1, False),
        ((4, 2), 2, 3, True),
        ((3, 3), 2, 3, False),
        ((4, 4), "2", 4, True),
        ((4, 4), 0, 9, True),
    ],
)
def test_a_gang_needs_room_on_whole_nodes(
    free: tuple[int, int], gpus: int | str, replicas: int, fits: bool
) -> None:
    scene = Scene(spec(replicas, gpus, pools=["a"]))
    scene.used = {("a1", GPU): 4 - free[0], ("a2", GPU): 4 - free[1]}
    scene.step()
    assert (scene.status.current is not None) is fits, scene.condition().message


def test_a_quantity_in_another_writing_is_a_number_or_the_api_servers_to_refuse() -> None:
    scene = Scene(spec(gpus="1k", pools=["a"]))
    scene.step()
    assert "1 pods of 1000" in scene.condition().message
    scene = Scene(spec(gpus="four"))
    scene.dry_run = Refusal("quantities must match the regular expression", temporary=False)
    scene.step()
    assert scene.why() == ("False", "TemplateInvalid")


@pytest.mark.parametrize(
    ("where", "toleration", "fits"),
    [
        ("pool", {"key": "gpu", "operator": "Exists"}, True),
        ("template", {"key": "gpu", "operator": "Exists"}, True),
        ("pool", {"operator": "Exists"}, True),
        ("pool", {"key": "gpu", "value": "yes"}, True),
        ("pool", {"key": "gpu", "operator": "Equal", "value": "no"}, False),
        ("pool", {"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ("pool", {"key": "other", "operator": "Exists"}, False),
    ],
)
def test_taints_and_tolerations(where: str, toleration: dict[str, str], fits: bool) -> None:
    made = spec(pools=["a"]).to_json()
    if where == "template":
        made["template"]["spec"]["tolerations"] = [toleration]
    scene = Scene(spec(**made))
    scene.pools["a"] = pool("a", tolerations=[toleration] if where == "pool" else [])
    for name in ("a1", "a2"):
        scene.on_node(name, taints=(taint("gpu", value="yes"), taint("soft", "PreferNoSchedule")))
    scene.step()
    assert (scene.status.current is not None) is fits


def test_the_templates_node_selector_restricts_the_pool() -> None:
    made = spec(pools=["a"]).to_json()
    made["template"]["spec"]["nodeSelector"] = {"zone": "z1"}
    scene = Scene(spec(**made))
    scene.step()
    assert scene.why() == ("False", "NoCapacity")
    scene.nodes["a3"] = node("a3", labels={"pool": "a", "zone": "z1"})
    assert scene.step() == [CreatePod(0)]


CLAIMS = [
    (None, "", "ClaimNotFound"),
    (Claim("claim", "u", deleting=True), "", "ClaimDeleting"),
    (Claim("claim", "u", phase="Lost"), "", "ClaimLost"),
    (Claim("claim", "u", modes=("ReadWriteOnce",)), "", "ClaimNotShareable"),
    (Claim("claim", "u", modes=("ReadOnlyMany",)), "", "ClaimReadOnly"),
    (Claim("claim", "u"), "other", "ClaimInUse"),
]


@pytest.mark.parametrize(("claim", "user", "reason"), CLAIMS, ids=[each[2] for each in CLAIMS])
def test_a_claim_that_cannot_be_mounted_is_a_condition(claim: Claim | None, user: str, reason: str) -> None:
    scene = Scene(spec(replicas=2))
    scene.claim, scene.claim_user = claim, user
    assert scene.step() == []
    assert scene.status.current is None
    assert scene.why() == ("False", reason)
    assert scene.why("ClaimReady") == ("False", reason)
    scene.claim, scene.claim_user = Claim("claim", "u"), ""
    scene.step()
    assert scene.current.attempt == 1
    assert scene.why("ClaimReady") == ("True", "ClaimReady")


@pytest.mark.parametrize("phase", ["Bound", "Pending"])
def test_a_claim_that_waits_for_its_first_pod_is_mounted(phase: str) -> None:
    scene = Scene()
    scene.claim = Claim("claim", "u", phase=phase, modes=("ReadWriteOnce",))
    assert scene.step() == [CreatePod(0)]


def _templated(replicas: int, mode: str) -> Scene:
    made = spec(replicas).to_json()
    made["checkpoint"] = {
        "mountPath": "/ckpt",
        "claimTemplate": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
    }
    scene = Scene(type(spec()).model_validate(made))
    scene.claim = None
    return scene


def test_a_claim_is_made_from_the_template_first() -> None:
    scene = _templated(1, "ReadWriteOnce")
    assert scene.step() == [CreateClaim(), CreatePod(0)]


def test_a_claim_that_could_not_be_shared_is_not_even_made() -> None:
    scene = _templated(2, "ReadWriteOnce")
    assert scene.step() == []
    assert scene.why() == ("False", "ClaimNotShareable")
    assert "ReadWriteMany" in scene.condition().message


@pytest.mark.parametrize(
    ("temporary", "reason", "wait"), [(True, "PodsRefused", 15.0), (False, "TemplateInvalid", 60.0)]
)
def test_a_refused_dry_run_is_a_condition_and_is_tried_again(
    temporary: bool, reason: str, wait: float
) -> None:
    scene = Scene()
    scene.dry_run = Refusal("exceeded quota: gpus", temporary)
    assert scene.step() == []
    assert scene.asked == [Ask.DRY_RUN]
    assert scene.why("TemplateInvalid") == ("True", reason)
    assert scene.why() == ("False", reason)
    assert "exceeded quota: gpus (next try at " in scene.condition().message
    assert scene.plan.wake_at == NOW + wait
    scene.step(wait - 1)
    assert scene.asked == [], "not before its time"
    assert scene.why() == ("False", reason)
    scene.dry_run = True
    assert scene.step(1) == [CreatePod(0)]
    assert scene.why("TemplateInvalid") == ("False", "Accepted")
    assert scene.counts == (0, 0)


def test_a_refused_template_is_tried_at_once_when_the_user_mends_it() -> None:
    scene = Scene()
    scene.dry_run = Refusal("no such field", temporary=False)
    scene.step()
    scene.dry_run = True
    assert scene.edit().step(1) == [CreatePod(0)]


def test_a_dry_run_is_asked_for_once_for_each_generation() -> None:
    scene = Scene().started()
    scene.exit(143, deleting=True).run()
    assert scene.current.attempt == 2
    assert scene.asked == []
    scene.edit().exit(143, deleting=True).run()
    scene.run(60)
    assert scene.current.attempt == 3
    assert scene.asked == [Ask.DRY_RUN]


def test_a_missing_pod_is_made_again_only_while_nothing_has_started() -> None:
    scene = Scene(spec(replicas=2)).run().remove(1, tombstone=False)
    assert CreatePod(1) in scene.step()
    scene.bind(1)
    scene.change(0, started_at=NOW, running=True)
    scene.remove(1, tombstone=False)
    did = scene.step()
    assert not any(isinstance(each, CreatePod) for each in did), did
    assert Ask.LIVE_PODS in scene.asked
    assert (scene.stop.cls, scene.stop.cause) == ("Disruption", "PodGone")


def test_a_start_that_kubelet_could_not_make_is_no_start() -> None:
    scene = Scene().run()
    scene.exit(128, exit=Exit(128, "StartError", NOW, "exec: no such file"), started_at=None).step()
    assert scene.status.start_time is None
    assert scene.counts == (0, 0)
    assert scene.why() == ("False", "BackOff")
    assert "StartError" in scene.condition().message
    assert "exec: no such file; look at its command, and at the GPU driver" in scene.condition().message
    assert 0 < scene.left(scene.status.next_try_at) <= 10


def test_what_cannot_be_started_is_tried_later_each_time_and_runs_once_it_can() -> None:
    scene = Scene(spec(recovery={"maxFailures": 0, "backoff": {"initialSeconds": 100, "maxSeconds": 150}}))
    for count in range(1, 5):
        scene.run()
        scene.exit(128, exit=Exit(128, "StartError", scene.now), started_at=None).run()
        assert (scene.status.start_streak, scene.counts) == (count, (0, 0))
        due = scene.left(scene.status.next_try_at)
        assert 0 < due <= min(150, 100 * 2 ** (count - 1))
        scene.run(due)
    scene.started().exit(143, deleting=True).run()
    assert (scene.status.start_streak, scene.counts) == (0, (1, 0))


def test_a_gang_that_does_not_become_whole_tries_the_next_pool() -> None:
    scene = Scene(spec(replicas=2, provisionTimeoutSeconds=100)).run()
    scene.change(0, started_at=NOW, running=True)
    scene.change(1, trouble="Unschedulable: 0/4 nodes are available")
    scene.run()
    assert scene.plan.wake_at == NOW + 100
    assert "rank 1: Unschedulable: 0/4 nodes" in scene.condition().message
    scene.run(100)
    assert (scene.stop.cls, scene.stop.cause) == ("NotStarted", "ProvisionTimeout")
    assert all(each.deleting for each in scene.pods.values())
    scene.remove(0).remove(1).run()
    assert (scene.current.attempt, scene.current.pool) == (2, "b")
    assert scene.counts == (0, 0)
    assert [each.pool for each in scene.status.demoted_pools] == ["a"]
    scene.run(100).remove(0).remove(1).run()
    assert (scene.current.attempt, scene.current.pool) == (3, "a"), "all are demoted: the user's order again"


def test_what_the_api_server_does_not_let_be_created_is_said() -> None:
    scene = Scene().run()
    scene.obstacle = "not all could be created: 403 Forbidden: exceeded quota"
    scene.step()
    assert scene.why() == ("False", "Starting")
    assert "exceeded quota" in scene.condition().message
    assert [story.reason for story in scene.plan.stories] == ["CreateFailed"]
    scene.obstacle = ""
    scene.step()
    assert "quota" not in scene.condition().message


def test_a_claim_of_an_older_job_of_the_same_name_is_waited_for() -> None:
    scene = _templated(1, "ReadWriteMany")
    scene.claim = Claim("job-checkpoint", "c", owner_uids=("older-job",))
    assert scene.step() == []
    assert scene.why() == ("False", "ClaimDeleting")
    scene.claim = None
    assert scene.step() == [CreateClaim(), CreatePod(0)]


def test_a_spot_node_without_a_ready_agent_is_a_condition() -> None:
    scene = Scene()
    scene.agents = set()
    scene.started()
    assert scene.why("AgentMissing") == ("True", "NoReadyAgent")
    assert "a1" in scene.condition("AgentMissing").message
    scene.agents = {"a1"}
    scene.step()
    assert scene.why("AgentMissing") == ("False", "AgentsReady")


def test_a_demotion_passes() -> None:
    scene = Scene(spec(provisionTimeoutSeconds=10)).run().run(10).remove().run()
    assert scene.current.pool == "b"
    scene.change(started_at=scene.now, running=True).run()
    scene.exit(143, deleting=True).run(700)
    assert scene.current.pool == "a"


def test_a_job_that_is_being_deleted_is_left_to_garbage_collection() -> None:
    scene = Scene().started()
    scene.job = dataclasses.replace(scene.job, deleting=True)
    assert scene.step() == []


def test_older_attempts_pods_are_cleared_but_the_last_ended_one_stays_for_its_logs() -> None:
    scene = Scene().started()
    scene.exit(143, deleting=True).run()
    assert scene.step() == []
    scene.pods["job-1-0"] = dataclasses.replace(
        scene.pods["job-1-0"], ended=False, deleting=False, running=True
    )
    assert scene.step() == [DeletePod("job-1-0", "job-1-0-uid")], "a late pod of an older attempt"


# Which nodes its pods prefer


def labelled(count: int, prefix: str = "a") -> Scene:
    scene = Scene(spec(count, pools=["a"]))
    scene.nodes = {
        f"{prefix}{number}": node(
            f"{prefix}{number}", labels={"pool": "a", "kubernetes.io/hostname": f"host-{number}"}
        )
        for number in range(count)
    }
    return scene


def test_the_nodes_that_were_counted_on_are_remembered_by_their_label() -> None:
    scene = labelled(2)
    scene.nodes["a1"] = node("a1")
    scene.step()
    assert (scene.current.preferred, scene.current.provisioned) == (["host-0"], [])


def test_of_many_nodes_those_with_least_room_are_remembered() -> None:
    scene = labelled(40)
    scene.nodes["a39"] = dataclasses.replace(scene.nodes["a39"], capacity={GPU: 8})
    scene.nodes["a7"] = dataclasses.replace(scene.nodes["a7"], capacity={GPU: 8})
    scene.used = {("a7", GPU): 1}
    scene.step()
    assert len(scene.current.preferred) == 32
    assert "host-39" not in scene.current.preferred


def test_an_attempt_that_waits_for_an_autoscaler_says_in_which_pool() -> None:
    scene = labelled(1)
    scene.edit(replicas=2)
    scene.pools["a"] = pool("a", provisioning="Autoscaled")
    scene.step()
    assert (scene.current.preferred, scene.current.provisioned) == ([], ["a"])
