"""A wrong manifest is refused at `kubectl apply`, by the name of the field and with what to do; a right one is kept."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.objects import ABSENT, Json, apply, changed, job, kubectl, pool

CONTAINERS = "spec.template.spec.containers"
CHECKPOINT = "spec.checkpoint"
CLAIM = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
MINIMUM = "should be greater than or equal to"
LEAVE_OUT = "not available in this version; leave it out"
MOUNT_PATH = "must be an absolute path such as /mnt/checkpoint"
JOB_NAME = "must be lower-case letters, digits and '-', begin with a letter, and have at most 48 characters"
DECIMAL = "must be a decimal number in quotes and without a currency, such as '1.20'"
ONE_CLAIM = "give exactly one of claimName (an existing claim) and claimTemplate (a claim to make)"
SPOT_VARIABLE = "variables that begin with SPOT_ are set by the operator; use another name"
RANKS = "spec.onDemand.ranks"
ONLY_NEVER = 'supported values: "Never"'


def containers(count: int) -> list[Json]:
    return [{"name": f"c{index}", "image": "i"} for index in range(count)]


def ranks(*named: int) -> Json:
    return {"ranks": [*named], "maxCost": "50.00"}


def variables(*names: str) -> list[Json]:
    return [{"name": name, "value": "x"} for name in names]


Row = tuple[dict[str, Any], str, str]
Answers = Callable[[Row], tuple[int, str, str]]

# What is changed in a right job, the field that the refusal must name, and what else it must say.
WRONG_JOBS: list[Row] = [
    ({"spec": ABSENT}, "spec", "Required value"),
    ({"spec.replicas": 0}, "spec.replicas", f"{MINIMUM} 1"),
    ({"spec.replicas": 1001}, "spec.replicas", "should be less than or equal to 1000"),
    ({"spec.replicas": "four"}, "spec.replicas", "must be of type integer"),
    ({"spec.suspend": "yes"}, "spec.suspend", "must be of type boolean"),
    ({"spec.managedBy": ""}, "spec.managedBy", "should be at least 1 chars long"),
    # Times
    ({"spec.deadlineSeconds": -1}, "spec.deadlineSeconds", f"{MINIMUM} 1"),
    ({"spec.deadlineSeconds": 1.5}, "spec.deadlineSeconds", "must be of type integer"),
    ({"spec.provisionTimeoutSeconds": 0}, "spec.provisionTimeoutSeconds", f"{MINIMUM} 1"),
    ({"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", f"{MINIMUM} 0"),
    ({f"{CHECKPOINT}.intervalSeconds": -1}, f"{CHECKPOINT}.intervalSeconds", f"{MINIMUM} 1"),
    (
        {"spec.recovery.nodeLostAfterSeconds": -1},
        "spec.recovery.nodeLostAfterSeconds",
        f"{MINIMUM} 1",
    ),
    (
        {"spec.recovery.assumeGoneAfterSeconds": -1},
        "spec.recovery.assumeGoneAfterSeconds",
        f"{MINIMUM} 1",
    ),
    (
        {"spec.recovery.backoff.initialSeconds": -1},
        "spec.recovery.backoff.initialSeconds",
        f"{MINIMUM} 1",
    ),
    (
        {"spec.recovery.backoff": {"initialSeconds": 60, "maxSeconds": 10}},
        "spec.recovery.backoff.initialSeconds",
        "initialSeconds must not exceed maxSeconds",
    ),
    (
        {"spec.recovery.backoff.initialSeconds": 400},
        "spec.recovery.backoff.initialSeconds",
        "initialSeconds must not exceed maxSeconds",
    ),
    ({"spec.recovery.maxFailures": -1}, "spec.recovery.maxFailures", f"{MINIMUM} 0"),
    ({"spec.recovery.maxDisruptions": -1}, "spec.recovery.maxDisruptions", f"{MINIMUM} 0"),
    (
        {"spec.recovery.retryableExitCodes": [0]},
        "spec.recovery.retryableExitCodes[0]",
        f"{MINIMUM} 1",
    ),
    (
        {"spec.recovery.retryableExitCodes": [256]},
        "spec.recovery.retryableExitCodes[0]",
        "should be less than or equal to 255",
    ),
    (
        {"spec.recovery.retryableExitCodes": [3, 3]},
        "spec.recovery.retryableExitCodes[1]",
        "Duplicate value: 3",
    ),
    (
        {"spec.recovery.retryableExitCodes": list(range(1, 66))},
        "spec.recovery.retryableExitCodes",
        "must have at most 64 items",
    ),
    # Where checkpoints live
    ({CHECKPOINT: ABSENT}, CHECKPOINT, "Required value"),
    ({f"{CHECKPOINT}.mountPath": ABSENT}, f"{CHECKPOINT}.mountPath", "Required value"),
    ({f"{CHECKPOINT}.mountPath": ""}, f"{CHECKPOINT}.mountPath", MOUNT_PATH),
    ({f"{CHECKPOINT}.mountPath": "ckpt"}, f"{CHECKPOINT}.mountPath", MOUNT_PATH),
    ({f"{CHECKPOINT}.mountPath": "/"}, f"{CHECKPOINT}.mountPath", MOUNT_PATH),
    ({f"{CHECKPOINT}.mountPath": "/a:b"}, f"{CHECKPOINT}.mountPath", MOUNT_PATH),
    ({f"{CHECKPOINT}.claimTemplate": CLAIM}, CHECKPOINT, ONE_CLAIM),
    ({f"{CHECKPOINT}.claimName": ABSENT}, CHECKPOINT, ONE_CLAIM),
    (
        {f"{CHECKPOINT}.claimName": "My_Claim"},
        f"{CHECKPOINT}.claimName",
        "must be the name of a PersistentVolumeClaim",
    ),
    (
        {f"{CHECKPOINT}.resumeFrom": {"job": "Old_Job"}},
        f"{CHECKPOINT}.resumeFrom.job",
        "must be the name of a SpotTrainingJob in the same namespace",
    ),
    (
        {"metadata.name": "same", f"{CHECKPOINT}.resumeFrom": {"job": "same"}},
        f"{CHECKPOINT}.resumeFrom.job",
        "a job finds its own checkpoints by itself",
    ),
    (
        {f"{CHECKPOINT}.claimName": ABSENT, f"{CHECKPOINT}.claimTemplate": {**CLAIM, "accessModes": []}},
        f"{CHECKPOINT}.claimTemplate.accessModes",
        "should have at least 1 items",
    ),
    (
        {f"{CHECKPOINT}.claimName": ABSENT, f"{CHECKPOINT}.claimTemplate": {**CLAIM, "accessModes": ["RWX"]}},
        f"{CHECKPOINT}.claimTemplate.accessModes[0]",
        'supported values: "ReadWriteOnce", "ReadWriteMany"',
    ),
    (
        {f"{CHECKPOINT}.claimName": ABSENT, f"{CHECKPOINT}.claimTemplate": {**CLAIM, "resources": {}}},
        f"{CHECKPOINT}.claimTemplate.resources",
        "requests.storage: say how much room the claim needs, such as 10Gi",
    ),
    (
        {f"{CHECKPOINT}.retain": "Sometimes"},
        f"{CHECKPOINT}.retain",
        'supported values: "Always", "OnFailure", "Never"',
    ),
    ({f"{CHECKPOINT}.writer": "library"}, f"{CHECKPOINT}.writer", 'supported values: "Library", "Other"'),
    # The template
    ({"spec.template": ABSENT}, "spec.template", "Required value"),
    ({"spec.template.spec": ABSENT}, "spec.template.spec", "Required value"),
    ({CONTAINERS: ABSENT}, CONTAINERS, "Required value"),
    ({CONTAINERS: []}, CONTAINERS, "should have at least 1 items"),
    ({f"{CONTAINERS}.0.image": ABSENT}, f"{CONTAINERS}[0].image", "Required value"),
    ({f"{CONTAINERS}.0.image": ""}, f"{CONTAINERS}[0].image", "should be at least 1 chars long"),
    ({f"{CONTAINERS}.0.name": ABSENT}, f"{CONTAINERS}[0].name", "Required value"),
    ({f"{CONTAINERS}.0.env": variables("A", "SPOT_JOB")}, CONTAINERS, SPOT_VARIABLE),
    (
        {
            "spec.template.spec.initContainers": [
                {"name": "a", "image": "i", "env": variables("SPOT_CHECKPOINT_DIR")}
            ]
        },
        "spec.template.spec.initContainers",
        SPOT_VARIABLE,
    ),
    ({"spec.template.spec.restartPolicy": "Always"}, "spec.template.spec.restartPolicy", ONLY_NEVER),
    ({"spec.template.spec.restartPolicy": "OnFailure"}, "spec.template.spec.restartPolicy", ONLY_NEVER),
    # The name, which becomes part of a host name
    ({"metadata.name": "a" * 49}, "metadata.name", JOB_NAME),
    ({"metadata.name": "50resnet"}, "metadata.name", JOB_NAME),
    ({"metadata.name": "resnet.50"}, "metadata.name", JOB_NAME),
    ({"metadata.name": "Resnet50"}, "metadata.name", "must consist of lower case alphanumeric characters"),
    ({"metadata.name": "resnet-"}, "metadata.name", "must start and end with an alphanumeric character"),
    # Misspelt
    ({"spec.replica": 2}, "spec.replica", "unknown field"),
    ({f"{CHECKPOINT}.mountpath": "/x"}, f"{CHECKPOINT}.mountpath", "unknown field"),
    ({"spec.recovery.maxFailure": 1}, "spec.recovery.maxFailure", "unknown field"),
    # What is not there yet
    (
        {"spec.onDemand": {"policy": "Deadline", "maxCost": "50.00"}},
        "spec.onDemand.policy",
        "Deadline is not available",
    ),
    ({"spec.onDemand.policy": "Always"}, "spec.onDemand.policy", 'supported values: "Never"'),
    # On-demand machines and prices
    ({"spec.onDemand.policy": "WhenNoSpot"}, "spec.onDemand.maxCost", "say how much may be spent"),
    ({"spec.onDemand.afterSeconds": -1}, "spec.onDemand.afterSeconds", f"{MINIMUM} 0"),
    ({"spec.onDemand.maxCost": "50 USD"}, "spec.onDemand.maxCost", "must be a decimal number in quotes"),
    ({"spec.onDemand.maxCost": "-1"}, "spec.onDemand.maxCost", "must be a decimal number in quotes"),
    ({"spec.maxPricePerNodeHour": "1,20"}, "spec.maxPricePerNodeHour", DECIMAL),
    ({"spec.maxPricePerNodeHour": 2}, "spec.maxPricePerNodeHour", "must be of type string"),
    ({"spec.onDemand.maxCost": 50}, "spec.onDemand.maxCost", "must be of type string"),
    ({"spec.replicas": 2, "spec.onDemand.ranks": [0]}, "spec.onDemand.maxCost", "say how much may be spent"),
    ({"spec.replicas": 2, "spec.onDemand": ranks(2)}, RANKS, "ranks are numbered from 0 to replicas - 1"),
    ({"spec.replicas": 2, "spec.onDemand": ranks(0, 1)}, RANKS, "leave at least one rank to spot machines"),
    ({"spec.replicas": 3, "spec.onDemand": ranks(0, 0)}, f"{RANKS}[1]", "Duplicate value: 0"),
    ({"spec.replicas": 2, "spec.onDemand": ranks()}, RANKS, "should have at least 1 items"),
    ({"spec.replicas": 2, "spec.onDemand": ranks(-1)}, f"{RANKS}[0]", f"{MINIMUM} 0"),
    (
        {
            "spec.replicas": 2,
            "spec.onDemand": ranks(0),
            f"{CHECKPOINT}.claimName": ABSENT,
            f"{CHECKPOINT}.claimTemplate": CLAIM | {"accessModes": ["ReadWriteOnce"]},
        },
        RANKS,
        "need a claim that is ReadWriteMany",
    ),
    # Too many
    ({"spec.pools": ["a", "b", "a"]}, "spec.pools[2]", 'Duplicate value: "a"'),
    ({"spec.pools": "spot-a"}, "spec.pools", "must be of type array"),
    ({"spec.pools": [""]}, "spec.pools[0]", "should be at least 1 chars long"),
    ({"spec.pools": [f"p{index}" for index in range(65)]}, "spec.pools", "must have at most 64 items"),
    ({CONTAINERS: containers(17)}, CONTAINERS, "must have at most 16 items"),
    (
        {f"{CONTAINERS}.0.env": variables(*(f"E{index}" for index in range(257)))},
        f"{CONTAINERS}[0].env",
        "must have at most 256 items",
    ),
    (
        {"spec.template.metadata": {"labels": {"team": "x" * 64}}},
        "spec.template.metadata.labels.team",
        "may not be more than 63 bytes",
    ),
]

WRONG_POOLS: list[Row] = [
    ({"spec": ABSENT}, "spec", "Required value"),
    ({"spec.nodeSelector": ABSENT}, "spec.nodeSelector", "Required value"),
    ({"spec.nodeSelector": {}}, "spec.nodeSelector", "should have at least 1 properties"),
    ({"spec.nodeSelector": {"team": "x" * 64}}, "spec.nodeSelector.team", "may not be more than 63 bytes"),
    ({"spec.capacityType": "spot"}, "spec.capacityType", 'supported values: "Spot", "OnDemand"'),
    ({"spec.provider": "ibm"}, "spec.provider", 'supported values: "eci", "aws"'),
    ({"spec.noticeSeconds": 0}, "spec.noticeSeconds", f"{MINIMUM} 1"),
    ({"spec.noticeSeconds": -30}, "spec.noticeSeconds", f"{MINIMUM} 1"),
    ({"spec.pricePerNodeHour": 1.2}, "spec.pricePerNodeHour", "must be of type string"),
    ({"spec.pricePerNodeHour": "-1"}, "spec.pricePerNodeHour", DECIMAL),
    ({"spec.pricePerNodeHour": "1,20"}, "spec.pricePerNodeHour", DECIMAL),
    ({"spec.pricePerNodeHour": "1e3"}, "spec.pricePerNodeHour", DECIMAL),
    ({"spec.onDemandPricePerNodeHour": "$4"}, "spec.onDemandPricePerNodeHour", DECIMAL),
    ({"spec.gpuResource": ""}, "spec.gpuResource", "should be at least 1 chars long"),
    ({"spec.headroom": {"nodes": 1}}, "spec.headroom", "only an autoscaler can keep nodes warm"),
    ({"spec.headroom": {}}, "spec.headroom.nodes", "Required value"),
    ({"spec.headroom": {"nodes": -1}}, "spec.headroom.nodes", f"{MINIMUM} 0"),
    ({"spec.headroom": {"nodes": 1, "gpusPerNode": 0}}, "spec.headroom.gpusPerNode", f"{MINIMUM} 1"),
    ({"spec.zone": "a"}, "spec.zone", "unknown field"),
    (
        {"spec.tolerations": [{"key": "k", "opperator": "Exists"}]},
        "spec.tolerations[0].opperator",
        "unknown field",
    ),
    (
        {"spec.tolerations": [{"key": "k", "operator": "In"}]},
        "spec.tolerations[0].operator",
        'supported values: "Exists", "Equal"',
    ),
    (
        {"spec.tolerations": [{"key": f"k{index}", "operator": "Exists"} for index in range(17)]},
        "spec.tolerations",
        "must have at most 16 items",
    ),
    ({"spec.provisioning": "Sometimes"}, "spec.provisioning", 'supported values: "Static", "Autoscaled"'),
    ({"spec.maxInterruptionsPerHour": 0}, "spec.maxInterruptionsPerHour", "greater than or equal to 1"),
    ({"spec.maxProvisioningGangs": 0}, "spec.maxProvisioningGangs", "greater than or equal to 1"),
]


def describe(row: Row) -> str:
    shown = {path: "absent" if value is ABSENT else json.dumps(value)[:24] for path, value in row[0].items()}
    return ",".join(f"{path.removeprefix('spec.')}={value}" for path, value in shown.items())


def assert_refused(answer: tuple[int, str, str], field: str, advice: str) -> None:
    code, said, complaint = answer
    assert code == 1, f"{said}{complaint}"
    # The API server writes `path: complaint`, or the path in quotes where it does not know the field.
    assert f"{field}: " in complaint or f'"{field}"' in complaint, complaint
    assert advice in complaint, complaint


@pytest.fixture(scope="module")
def answers(namespace: str, unique: str) -> Iterator[Answers]:
    """What kubectl says to each wrong manifest; it is asked about several at a time."""
    bases = [*((row, job("wrong", namespace)) for row in WRONG_JOBS)]
    bases += [(row, pool(f"{unique}-wrong")) for row in WRONG_POOLS]
    with ThreadPoolExecutor(max_workers=4) as threads:
        given = {id(row): threads.submit(apply, changed(base, row[0])) for row, base in bases}
        yield lambda row: given[id(row)].result()


@pytest.mark.parametrize("row", WRONG_JOBS, ids=describe)
def test_a_wrong_job_is_refused_by_the_name_of_the_field(row: Row, answers: Answers) -> None:
    assert_refused(answers(row), row[1], row[2])


@pytest.mark.parametrize("row", WRONG_POOLS, ids=describe)
def test_a_wrong_pool_is_refused_by_the_name_of_the_field(row: Row, answers: Answers) -> None:
    assert_refused(answers(row), row[1], row[2])


def test_nothing_is_there_of_what_was_refused(namespace: str, unique: str) -> None:
    jobs, pools = (
        kubectl("-n", namespace, "get", "stj", "-o", "name"),
        kubectl("get", "spotpools", "-o", "name"),
    )
    assert (jobs[0], pools[0]) == (0, 0), jobs[2] + pools[2]
    assert jobs[1] == ""
    assert unique not in pools[1]


def taken(made: Json) -> Json:
    """Apply what is right; what the API server keeps of it."""
    code, _, complaint = apply(made)
    assert code == 0, complaint
    assert complaint == ""
    metadata = made["metadata"]
    where = ["-n", metadata["namespace"]] if "namespace" in metadata else []
    code, said, complaint = kubectl(*where, "get", made["kind"], metadata["name"], "-o", "json")
    assert code == 0, complaint
    kept: Json = json.loads(said)
    return kept


# Somebody else's, so that nothing but the API server looks at it.
FOREIGN = {"managedBy": "example.org/other"}


def test_the_least_that_must_be_said_and_what_is_filled_in(namespace: str) -> None:
    made = job("least", namespace, **FOREIGN)
    assert taken(made)["spec"] == {
        **made["spec"],
        "replicas": 1,
        "pools": [],
        "suspend": False,
        "provisionTimeoutSeconds": 900,
        "checkpoint": {**made["spec"]["checkpoint"], "retain": "Always", "writer": "Other"},
        "onDemand": {"policy": "Never", "afterSeconds": 600},
        "recovery": {
            "maxFailures": 3,
            "backoff": {"initialSeconds": 10, "maxSeconds": 360},
            "nodeLostAfterSeconds": 60,
            "assumeGoneAfterSeconds": 300,
        },
    }


def test_all_that_can_be_said_is_kept_and_a_null_is_as_good_as_nothing(namespace: str) -> None:
    made = job(
        "a" * 48,
        namespace,
        replicas=4,
        pools=["a100-zone-a", "a100-zone-b", "a100-ondemand"],
        checkpoint={
            "mountPath": "/mnt/checkpoint",
            "claimName": None,
            "claimTemplate": {**CLAIM, "storageClassName": "fast", "volumeMode": "Filesystem"},
            "retain": "OnFailure",
            "writer": "Library",
            "intervalSeconds": None,
            "resumeFrom": None,
        },
        recovery={
            "maxFailures": 0,
            "maxDisruptions": None,
            "backoff": {"initialSeconds": 10, "maxSeconds": 10},
            "nodeLostAfterSeconds": 1,
            "assumeGoneAfterSeconds": 1,
        },
        onDemand={"policy": "WhenNoSpot", "afterSeconds": 0, "maxCost": "50.00", "ranks": [0]},
        maxPricePerNodeHour="12.5",
        provisionTimeoutSeconds=900,
        deadlineSeconds=172800,
        suspend=True,
        ttlSecondsAfterFinished=None,
        **FOREIGN,
    )
    assert taken(made)["spec"] == without_nulls(made["spec"])


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return value


def test_what_the_schema_does_not_know_of_a_template_is_kept_as_it_is(namespace: str) -> None:
    template = {
        "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "a\nb"}, "finalizers": ["x/y"]},
        "spec": {
            "restartPolicy": "Never",
            "priorityClassName": "low",
            "terminationGracePeriodSeconds": 30,
            "securityContext": {"runAsUser": 65532, "fsGroup": 65532},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "empty", "emptyDir": {}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "x"}],
            "initContainers": [{"name": "first", "image": "busybox", "env": variables("MASTER_ADDR")}],
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example/train:1@sha256:" + "0" * 64,
                    "command": ["python", "-c", "print('ä €')"],
                    "env": [
                        {"name": "SPOTTY", "value": ""},
                        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    ],
                    "resources": {
                        "limits": {"nvidia.com/gpu": 8, "memory": "64Gi"},
                        "requests": {"cpu": "500m"},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
                },
                {"name": "side", "image": "i"},
            ],
        },
    }
    assert taken(job("template", namespace, template=template, **FOREIGN))["spec"]["template"] == template


def test_a_pool_with_everything(unique: str) -> None:
    made = pool(
        f"{unique}-full",
        capacityType="OnDemand",
        provider="aws",
        noticeSeconds=120,
        pricePerNodeHour="1.20",
        onDemandPricePerNodeHour="12",
        tolerations=[
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
        gpuResource="amd.com/gpu",
        provisioning="Autoscaled",
        headroom={"nodes": 2, "gpusPerNode": 8},
        maxProvisioningGangs=7,
        maxInterruptionsPerHour=3,
        nodeDeletionMeansGone=True,
    )
    try:
        assert taken(made)["spec"] == without_nulls(made["spec"])
    finally:
        kubectl("delete", "spotpool", f"{unique}-full", "--ignore-not-found")


def test_a_pool_of_which_only_the_nodes_are_said(unique: str) -> None:
    made = pool(f"{unique}-least")
    try:
        assert taken(made)["spec"] == {
            **made["spec"],
            "capacityType": "Spot",
            "noticeSeconds": 60,
            "tolerations": [],
            "gpuResource": "nvidia.com/gpu",
            "provisioning": "Static",
            "maxProvisioningGangs": 4,
            "nodeDeletionMeansGone": False,
        }
    finally:
        kubectl("delete", "spotpool", f"{unique}-least", "--ignore-not-found")


SUSPEND = "can be changed only while the job is suspended (suspend: true)"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec.replicas": 2}, "spec.replicas"),
        ({f"{CHECKPOINT}.claimName": "another"}, CHECKPOINT),
        ({f"{CHECKPOINT}.mountPath": "/another"}, CHECKPOINT),
        ({f"{CHECKPOINT}.claimName": ABSENT, f"{CHECKPOINT}.claimTemplate": CLAIM}, CHECKPOINT),
    ],
)
def test_what_an_attempt_stands_on_is_changed_only_while_suspended(
    changes: dict[str, Any], field: str, namespace: str
) -> None:
    made = job("changing", namespace, **FOREIGN)
    taken(made)
    try:
        assert_refused(apply(changed(made, changes)), field, SUSPEND)
        suspended = changed(made, {**changes, "spec.suspend": True})
        assert taken(suspended)["spec"]["suspend"] is True
        assert taken(changed(suspended, {"spec.suspend": False}))["spec"]["suspend"] is False
    finally:
        kubectl("-n", namespace, "delete", "stj", "changing", "--ignore-not-found")


TEMPLATE = f"{CHECKPOINT}.claimTemplate"
ONCE = "claimTemplate: cannot be changed, for its claim is made once"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({f"{TEMPLATE}.accessModes": ["ReadWriteOnce"]}, TEMPLATE, ONCE),
        ({f"{TEMPLATE}.resources.requests.storage": "2Gi"}, TEMPLATE, ONCE),
        ({f"{TEMPLATE}.storageClassName": "fast"}, TEMPLATE, ONCE),
        ({"spec.managedBy": "example.org/third"}, "spec.managedBy", "managedBy: cannot be changed"),
    ],
)
def test_what_is_made_once_is_never_changed(
    changes: dict[str, Any], field: str, words: str, namespace: str
) -> None:
    template = {**CLAIM, "storageClassName": "slow"}
    made = changed(
        job("made-once", namespace, **FOREIGN), {f"{CHECKPOINT}.claimName": ABSENT, TEMPLATE: template}
    )
    taken(made)
    try:
        for suspend in (False, True):
            assert_refused(apply(changed(made, {**changes, "spec.suspend": suspend})), field, words)
        assert (
            taken(changed(made, {f"{CHECKPOINT}.retain": "Never"}))["spec"]["checkpoint"]["retain"] == "Never"
        )
    finally:
        kubectl("-n", namespace, "delete", "stj", "made-once", "--ignore-not-found")


def test_what_may_be_changed_at_any_time(namespace: str) -> None:
    made = job("steering", namespace, **FOREIGN)
    taken(made)
    steered = changed(
        made,
        {
            "spec.pools": ["other"],
            "spec.recovery.maxFailures": 9,
            "spec.deadlineSeconds": 60,
            f"{CONTAINERS}.0.image": "train:2",
        },
    )
    assert taken(steered)["spec"]["template"] == steered["spec"]["template"]
