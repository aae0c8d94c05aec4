"""The objects of an attempt: what the pods are told, and what of the user's is kept."""

from typing import Any

import pytest

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.status import Current
from spot_training.control import pods as manifests
from tests.unit.control.build import GPU, NOW, job, pool, spec

Json = dict[str, Any]


def env(container: Json) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def made(template: Json | None = None, replicas: int = 2, **checkpoint: Any) -> Json:
    about = spec(replicas, checkpoint=checkpoint).to_json()
    about["template"]["spec"] |= template or {}
    in_pool = pool("a", noticeSeconds=120, tolerations=[{"key": "gpu", "operator": "Exists"}])
    return manifests.pod(job(SpotTrainingJobSpec.model_validate(about)), 3, 1, in_pool)


def test_the_contract_with_the_training_code() -> None:
    assert env(made(intervalSeconds=30)["spec"]["containers"][0]) == {
        "SPOT_JOB": "job",
        "SPOT_FENCE": "20300317T174540Z-job-uid-000003",
        "SPOT_ATTEMPT": "3",
        "SPOT_CHECKPOINT_DIR": "/ckpt",
        "SPOT_CHECKPOINT_INTERVAL_SECONDS": "30",
        "SPOT_GRACE_SECONDS": "115",
        "MASTER_ADDR": "job-3-0.job",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": "job-3-0.job",
        "PET_MASTER_PORT": "29500",
        "PET_RDZV_ID": "job-uid-3",
    }


def test_the_name_at_which_rank_0_is_found_is_one_that_dns_knows() -> None:
    about = job(spec(2))
    first, service = manifests.pod(about, 1, 0, pool("a")), manifests.service(about)
    assert f"{first['spec']['hostname']}.{first['spec']['subdomain']}" == "job-1-0.job"
    assert service["metadata"]["name"] == first["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= first["metadata"]["labels"].items()


def test_one_pod_needs_no_service() -> None:
    alone = made(replicas=1)
    assert env(alone["spec"]["containers"][0])["MASTER_ADDR"] == "localhost"
    assert "subdomain" not in alone["spec"]


def test_a_users_own_value_wins_and_may_refer_to_ours() -> None:
    own = [{"name": "MASTER_PORT", "value": "1"}, {"name": "TAG", "value": "r$(RANK)"}]
    container = made({"containers": [{"name": "main", "image": "i", "env": own}]})["spec"]["containers"][0]
    names = [each["name"] for each in container["env"]]
    assert env(container)["MASTER_PORT"] == "1"
    assert len(names) == len(set(names))
    assert names.index("RANK") < names.index("TAG"), "only what stands before can be referred to"


def test_each_attempt_has_a_rendezvous_of_its_own() -> None:
    about = job(spec(2))
    ids = {
        env(manifests.pod(about, attempt, index, None)["spec"]["containers"][0])["PET_RDZV_ID"]
        for attempt in (1, 2)
        for index in (0, 1)
    }
    assert len(ids) == 2, "one for all ranks of an attempt, another for the next"


def test_on_the_nodes_network_the_port_is_the_attempts_own_and_the_scheduler_knows() -> None:
    about = spec(2).to_json()
    about["template"]["spec"] |= {"hostNetwork": True}
    gang = job(SpotTrainingJobSpec.model_validate(about))
    first, second = (manifests.pod(gang, 1, index, None)["spec"] for index in (0, 1))
    (listens,) = first["containers"][0]["ports"]
    port = env(first["containers"][0])["MASTER_PORT"]
    assert env(second["containers"][0])["PET_MASTER_PORT"] == port == str(listens["hostPort"])
    assert listens["containerPort"] == listens["hostPort"] in manifests.HOST_PORTS
    assert "ports" not in second["containers"][0], "only rank 0 listens"
    assert first["dnsPolicy"] == "ClusterFirstWithHostNet"
    later = manifests.pod(gang, 2, 0, None)["spec"]["containers"][0]
    assert env(later)["MASTER_PORT"] != port, "a late process of an older attempt holds the port"


def test_a_port_that_the_user_chose_is_not_declared() -> None:
    own = [{"name": "main", "image": "i", "env": [{"name": "MASTER_PORT", "value": "1"}]}]
    about = spec(2).to_json()
    about["template"]["spec"] = {"hostNetwork": True, "containers": own}
    first = manifests.pod(job(SpotTrainingJobSpec.model_validate(about)), 1, 0, None)["spec"]
    assert "ports" not in first["containers"][0]
    assert env(first["containers"][0])["MASTER_PORT"] == "1"


def test_what_keeps_autoscalers_off_is_there_unless_the_user_says_otherwise() -> None:
    about = spec(2).to_json()
    about["template"]["metadata"] = {"annotations": {"karpenter.sh/do-not-disrupt": "false", "own": "x"}}
    pod = manifests.pod(job(SpotTrainingJobSpec.model_validate(about)), 1, 0, None)
    assert pod["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "false",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "own": "x",
    }


def test_every_container_has_the_volume() -> None:
    containers = [
        {"name": "main", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        {"name": "side", "image": "i"},
    ]
    pod = made({"containers": containers, "volumes": [{"name": "data", "emptyDir": {}}]})
    assert [[mount["mountPath"] for mount in each["volumeMounts"]] for each in pod["spec"]["containers"]] == [
        ["/data", "/ckpt"],
        ["/ckpt"],
    ]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["data", "spot-checkpoint"]
    assert pod["spec"]["volumes"][1]["persistentVolumeClaim"] == {"claimName": "claim"}


def test_where_it_may_run() -> None:
    own = {"nodeSelector": {"zone": "z"}, "tolerations": [{"key": "mine"}]}
    pod = made(own)["spec"]
    assert pod["nodeSelector"] == {"zone": "z", "pool": "a"}
    assert pod["tolerations"] == [{"key": "mine"}, {"key": "gpu", "operator": "Exists"}]


def test_what_is_set_for_the_user() -> None:
    pod = made()
    assert (pod["spec"]["restartPolicy"], pod["spec"]["terminationGracePeriodSeconds"]) == ("Never", 115)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    assert pod["metadata"]["labels"] == {
        "spot.training/job": "job",
        "spot.training/job-uid": "job-uid",
        "spot.training/attempt": "3",
        "spot.training/index": "1",
    }
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("SpotTrainingJob", "job-uid", True)
    assert "blockOwnerDeletion" not in owner
    assert "finalizers" not in pod["metadata"]


def test_what_the_user_set_stays() -> None:
    pod = made({"terminationGracePeriodSeconds": 20, "serviceAccountName": "mine", "hostNetwork": True})
    assert pod["spec"]["terminationGracePeriodSeconds"] == 20
    assert env(pod["spec"]["containers"][0])["SPOT_GRACE_SECONDS"] == "20"
    assert "automountServiceAccountToken" not in pod["spec"]
    assert pod["spec"]["hostNetwork"] is True


@pytest.mark.parametrize(
    "field", ["nodeSelector", "tolerations", "volumes", "terminationGracePeriodSeconds", "initContainers"]
)
def test_an_empty_field_of_a_rendered_template_is_no_error(field: str) -> None:
    assert made({field: None})["spec"]["restartPolicy"] == "Never"


def test_fences_order_attempts_and_jobs() -> None:
    older, newer = job(created=NOW - 60), job(created=NOW, uid="aaa")
    fences = [manifests.fence(older, 2), manifests.fence(older, 10), manifests.fence(newer, 1)]
    assert fences == sorted(fences)


def test_a_dry_run_needs_no_pool() -> None:
    pod = manifests.pod(job(), 1, 0, None)
    assert pod["spec"]["terminationGracePeriodSeconds"] == 55
    assert pod["spec"]["containers"][0]["resources"] == {"limits": {GPU: 4}}


@pytest.mark.parametrize(("retain", "owned"), [("Never", True), ("Always", False), ("OnFailure", False)])
def test_whether_the_claim_goes_with_the_job(retain: str, owned: bool) -> None:
    about = spec().to_json()
    template = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    about["checkpoint"] = {"mountPath": "/ckpt", "retain": retain, "claimTemplate": template}
    claim = manifests.claim(job(SpotTrainingJobSpec.model_validate(about)))
    assert claim["metadata"]["name"] == "job-checkpoint"
    assert claim["spec"] == template
    assert ("ownerReferences" in claim["metadata"]) is owned


# Where the pod would rather be


def opened(**fields: Any) -> Current:
    return Current.model_validate(
        {"attempt": 3, "pool": "a", "openedAt": "2026-04-08T05:00:00Z", "replicas": 2, **fields}
    )


def affinity_of(current: Current, template: Json | None = None) -> Json:
    about = spec(2).to_json()
    about["template"]["spec"] |= template or {}
    made = job(SpotTrainingJobSpec.model_validate(about))
    found: Json = manifests.pod(made, 3, 1, pool("a"), current)["spec"].get("affinity", {})
    return found


def test_a_pod_prefers_the_nodes_that_were_counted_on() -> None:
    assert affinity_of(opened()) == {}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["h1", "h2"]}
    wanted = {"weight": 100, "preference": {"matchExpressions": [here]}}
    said = "preferredDuringSchedulingIgnoredDuringExecution"
    assert affinity_of(opened(preferred=["h1", "h2"])) == {"nodeAffinity": {said: [wanted]}}
    own = {"weight": 7, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}
    required = {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["nvme"]}]}]
    }
    theirs = {said: [own], "requiredDuringSchedulingIgnoredDuringExecution": required}
    made = affinity_of(opened(preferred=["h1", "h2"]), {"affinity": {"nodeAffinity": theirs}})
    assert made["nodeAffinity"] == theirs | {said: [own, wanted]}
