"""What users may write: the documented examples are taken, mistakes are refused by the name of the field."""

import copy
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.pool import SpotPoolSpec
from spot_training.api.status import SpotTrainingJobStatus
from spot_training.api.times import format_micro_time, format_time, parse_time

EXAMPLE = """
replicas: 4
pools: [a100-zone-a, a100-zone-b, a100-ondemand]
template:
  metadata: {labels: {team: vision}}
  spec:
    priorityClassName: low
    containers:
      - name: main
        image: train:1
        command: [python, train.py]
        env: [{name: HOME, value: /tmp}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        resources: {limits: {nvidia.com/gpu: 4, memory: 64Gi}, requests: {cpu: 500m}}
checkpoint:
  mountPath: /mnt/checkpoint
  claimName: resnet50-ckpt
  retain: Always
  writer: Library
  intervalSeconds: null
  resumeFrom: {job: resnet50-old}
recovery:
  maxFailures: 3
  maxDisruptions: null
  backoff: {initialSeconds: 10, maxSeconds: 360}
  nodeLostAfterSeconds: 60
  assumeGoneAfterSeconds: 300
onDemand:
  policy: WhenNoSpot
  afterSeconds: 600
  ranks: [0]
  maxCost: "50.00"
provisionTimeoutSeconds: 900
deadlineSeconds: 172800
suspend: false
ttlSecondsAfterFinished: null
managedBy: spot.training/operator
"""


def example() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(EXAMPLE)
    return made


def test_the_whole_documented_spec_is_in_the_model() -> None:
    made = SpotTrainingJobSpec.model_validate(example())
    assert (made.replicas, made.checkpoint.writer, made.recovery.backoff.max_seconds) == (4, "Library", 360)
    assert made.on_demand.max_cost == "50.00"


def test_the_template_is_passed_on_as_it_was_written() -> None:
    template = example()["template"]
    assert SpotTrainingJobSpec.model_validate(example()).template.spec.to_json() == template["spec"]


def test_the_least_that_must_be_said() -> None:
    made = SpotTrainingJobSpec.model_validate(
        {
            "template": {"spec": {"containers": [{"name": "main", "image": "i"}]}},
            "checkpoint": {"mountPath": "/ckpt", "claimName": "c"},
        }
    )
    assert (made.replicas, made.pools, made.suspend, made.checkpoint.writer) == (1, [], False, "Other")
    assert (made.recovery.max_failures, made.recovery.max_disruptions) == (3, None)
    assert (made.provision_timeout_seconds, made.managed_by) == (900, "spot.training/operator")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicas", 0),
        ("replicas", 1001),
        ("deadlineSeconds", -1),
        ("provisionTimeoutSeconds", 0),
        ("ttlSecondsAfterFinished", -1),
        ("checkpoint.mountPath", None),
        ("checkpoint.mountPath", "relative"),
        ("checkpoint.mountPath", "/"),
        ("checkpoint.mountPath", "/a:b"),
        ("checkpoint.retain", "Sometimes"),
        ("checkpoint.writer", "library"),
        ("checkpoint.intervalSeconds", 0),
        ("checkpoint.mountpath", "/x"),
        ("recovery.maxFailures", -1),
        ("recovery.backoff.initialSeconds", 0),
        ("onDemand.maxCost", "50 USD"),
        ("onDemand.maxCost", "1e3"),
        ("onDemand.policy", "Always"),
        ("template.spec.containers", []),
        ("template.spec.containers", None),
        ("template.spec.restartPolicy", "Always"),
        ("template.spec.containers.0.image", None),
        ("template.spec.containers.0.name", ""),
        ("replica", 2),
    ],
)
def test_a_mistake_is_refused_by_the_name_of_the_field(path: str, value: object) -> None:
    made = example()
    at: Any = made
    *parents, last = path.split(".")
    for part in parents:
        at = at[int(part) if part.isdigit() else part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    with pytest.raises(ValidationError) as caught:
        SpotTrainingJobSpec.model_validate(made)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [path]


POOL = {
    "nodeSelector": {"cloud": "eci", "gpu": "a100"},
    "capacityType": "Spot",
    "provider": "eci",
    "noticeSeconds": 180,
    "pricePerNodeHour": "1.20",
    "onDemandPricePerNodeHour": "4.10",
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "tolerationSeconds": 5}],
    "gpuResource": "nvidia.com/gpu",
    "provisioning": "Autoscaled",
    "maxInterruptionsPerHour": 3,
    "nodeDeletionMeansGone": True,
}


def test_the_documented_pool() -> None:
    made = SpotPoolSpec.model_validate(POOL)
    assert (made.notice_seconds, made.price_per_node_hour, made.node_deletion_means_gone) == (
        180,
        "1.20",
        True,
    )
    assert [each.to_json() for each in made.tolerations] == POOL["tolerations"]
    least = SpotPoolSpec.model_validate({"nodeSelector": {"pool": "a"}})
    assert (least.capacity_type, least.provisioning, least.gpu_resource) == (
        "Spot",
        "Static",
        "nvidia.com/gpu",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodeSelector", {}),
        ("capacityType", "spot"),
        ("noticeSeconds", 0),
        ("pricePerNodeHour", "-1"),
        ("provisioning", "Maybe"),
        ("maxInterruptionsPerHour", 0),
        ("zone", "a"),
    ],
)
def test_a_pools_mistake_is_refused_by_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SpotPoolSpec.model_validate(copy.deepcopy(POOL) | {field: value})
    assert [error["loc"][0] for error in caught.value.errors()] == [field]


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SpotTrainingJobSpec.model_validate(example()).replicas = 2  # type: ignore[misc]


def test_a_status_survives_its_way_through_json() -> None:
    raw = {
        "phase": "Recovering",
        "current": {
            "attempt": 2,
            "pool": "a",
            "openedAt": "2026-04-08T05:00:00.000Z",
            "stop": {"cause": "Reclaimed", "class": "Disruption", "at": "2026-04-08T05:01:00.000Z"},
        },
    }
    made = SpotTrainingJobStatus.model_validate(raw)
    assert made.current is not None
    assert made.current.stop is not None
    assert made.current.stop.cls == "Disruption"
    assert SpotTrainingJobStatus.model_validate(made.to_json()) == made
    assert made.to_json()["current"]["stop"]["class"] == "Disruption"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-04-08T05:00:00Z", 1775624400.0),
        ("2026-04-08T07:00:00.5+02:00", 1775624400.5),
        ("2026-04-08T05:00:00.000001Z", 1775624400.000001),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds
    assert parse_time(format_micro_time(seconds)) == seconds
    assert format_time(parse_time(format_time(seconds))) == format_time(seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-04-08T05:00:00", "12", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59Z"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)
