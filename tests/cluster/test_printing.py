"""What kubectl shows of jobs and pools, and that it can apply and explain their definitions."""

import json
from pathlib import Path

import pytest

from tests.cluster.objects import apply, job, kubectl, pool
from tests.kit import jobs
from tests.kit.kube import get
from tests.kit.shell import wait_until

CRDS = Path(__file__).parents[2] / "crds"
ANNOTATION_LIMIT = 262_144
"""All annotations of an object together have this much room (Kubernetes: `TotalAnnotationSizeLimitB`)."""
JOB_COLUMNS = ["NAME", "PHASE", "POOL", "READY", "STEP", "DISRUPTIONS", "SPENT", "AGE"]
WIDE_COLUMNS = [*JOB_COLUMNS[:-1], "FAILURES", "ATTEMPT", "ON-DEMAND", "WHY", "AGE"]
POOL_COLUMNS = [
    "NAME",
    "TYPE",
    "NODES",
    "READY",
    "RECLAIMING",
    "GPUS",
    "FREE",
    "JOBS",
    "PRICE",
    "RATE",
    "AVAILABLE",
    "AGE",
]


def printed(*words: str) -> list[list[str]]:
    """A table as kubectl prints it, cut at two spaces or more."""
    code, said, complaint = kubectl(*words)
    assert code == 0, complaint
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in said.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _waiting(namespace: str, unique: str) -> None:
    """A job that waits for a pool which is not there."""
    code, _, complaint = apply(job("waits", namespace, pools=[f"{unique}-none"]))
    assert code == 0, complaint
    wait_until(
        "a phase of the job",
        lambda: get("stj/waits", "-n", namespace)[0].get("status", {}).get("phase") == "Pending",
        timeout=30,
        seen=lambda: kubectl("-n", namespace, "get", "stj", "waits", "-o", "yaml")[1],
    )


@pytest.mark.parametrize(
    "word", ["stj", "spottrainingjob", "spottrainingjobs", "spottrainingjobs.spot.training"]
)
def test_jobs_by_each_of_their_names(word: str, namespace: str) -> None:
    head, row = printed("-n", namespace, "get", word)
    assert head == JOB_COLUMNS
    # Before the first attempt there is no pool and no step to show.
    assert row[:4] == ["waits", "Pending", "0/1", "0"]


def test_jobs_in_full_say_why_they_wait(namespace: str) -> None:
    head, row = printed("-n", namespace, "get", "stj", "-o", "wide")
    assert head == WIDE_COLUMNS
    condition = jobs.condition(get("stj/waits", "-n", namespace)[0]["status"], "Running")
    assert condition["message"] in row


@pytest.mark.parametrize("word", ["spotpool", "spotpools"])
def test_pools_say_what_they_have(word: str, unique: str) -> None:
    name = f"{unique}-shown"
    assert apply(pool(name, pricePerNodeHour="1.20"))[0] == 0
    try:
        wait_until(
            "the pool's status",
            lambda: bool(get(f"spotpool/{name}")[0].get("status", {}).get("conditions")),
            timeout=30,
            seen=lambda: kubectl("get", "spotpool", name, "-o", "yaml")[1],
        )
        head, row = printed("get", word, name)
        assert head == POOL_COLUMNS
        nothing = "No capacity currently available: no node matches nodeSelector"
        assert row[:-1] == [name, "Spot", "0", "0", "0", "0", "0", "0", "1.20", "0.020", nothing]
    finally:
        kubectl("delete", "spotpool", name, "--ignore-not-found")


def test_both_kinds_are_found_by_their_category(namespace: str) -> None:
    code, said, complaint = kubectl("-n", namespace, "get", "spot", "-o", "name")
    assert code == 0, complaint
    assert "spottrainingjob.spot.training/waits" in said.splitlines()
    assert "spotpool.spot.training/spot-a" in said.splitlines()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("stj", "A training program that runs to its end on spot nodes"),
        ("stj.spec.checkpoint.writer", "the program saves with spot_training.train"),
        ("stj.spec.template.spec.containers", "A container of the template."),
        ("stj.spec.recovery.backoff", "full jitter"),
        ("stj.status.timeline", "the story"),
        ("spotpool", "A named group of interchangeable nodes"),
        ("spotpool.spec.noticeSeconds", "Seconds between the cloud's notice and the end of the machine"),
    ],
)
def test_every_part_explains_itself(path: str, words: str) -> None:
    code, said, complaint = kubectl("explain", path)
    assert code == 0, complaint
    assert words in " ".join(said.split()), said


def test_every_field_of_a_spec_has_a_type_in_explain() -> None:
    code, said, complaint = kubectl("explain", "stj.spec", "--recursive")
    assert code == 0, complaint
    assert "mountPath\t<string> -required-" in said, said


@pytest.mark.parametrize("path", sorted(CRDS.iterdir()), ids=lambda path: path.stem)
def test_a_plain_apply_of_the_definitions_works(path: Path) -> None:
    # Tried and not done: the definitions in the cluster are Helm's.
    code, said, complaint = kubectl("apply", "--dry-run=server", "-o", "json", "-f", str(path))
    assert code == 0, complaint
    # The whole object is in there once more, which is what a plain apply is limited by.
    annotations = json.loads(said)["metadata"]["annotations"]
    applied = json.loads(annotations["kubectl.kubernetes.io/last-applied-configuration"])
    assert applied["spec"]["names"]["plural"] == path.stem
    size = sum(len(key) + len(value) for key, value in annotations.items())
    assert size < ANNOTATION_LIMIT / 4, size
