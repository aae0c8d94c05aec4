"""The contract between operator and training library, which share no code: each side's words, read by the other."""

from pathlib import Path
from typing import Any

import pytest

from spot_training.api import names
from spot_training.control import pods
from spot_training.control.policies import classify
from spot_training.control.read import read_report
from spot_training.train import Training, environment, report
from spot_training.train.environment import Settings
from spot_training.train.fence import attempt_number, check_fence
from tests.unit.control.build import job, pool, spec


def variables(replicas: int = 1, attempt: int = 1, index: int = 0, **fields: Any) -> dict[str, str]:
    """The environment that the operator gives to a pod's first container."""
    made = pods.pod(job(spec(replicas, **fields)), attempt, index, pool("a", noticeSeconds=60))
    return {each["name"]: each["value"] for each in made["spec"]["containers"][0]["env"]}


def test_both_sides_name_the_variables_alike() -> None:
    words = [
        "ENV_JOB",
        "ENV_FENCE",
        "ENV_ATTEMPT",
        "ENV_CHECKPOINT_DIR",
        "ENV_RESUME_DIR",
        "ENV_INTERVAL",
        "ENV_GRACE",
    ]
    assert {word: getattr(environment, word) for word in words} == {
        word: getattr(names, word) for word in words
    }


def test_the_library_reads_what_the_operator_sets() -> None:
    told = Settings.read(variables(4, attempt=3, index=2, checkpoint={"intervalSeconds": 90}))
    assert told.checkpoint_dir == Path("/ckpt")
    assert (told.attempt, told.interval, told.grace) == (3, 90.0, 55.0)
    assert (told.world_size, told.local_rank) == (4, 0)
    assert told.fence is not None
    assert check_fence(told.fence) == told.fence
    assert attempt_number(told.fence) == 3


def test_fences_sort_by_job_and_attempt() -> None:
    older, newer = job(created=1_800_000_000.0), job(created=1_900_000_000.0, uid="a-uid-that-sorts-first")
    attempts = [pods.fence(older, 1), pods.fence(older, 2), pods.fence(older, 10), pods.fence(newer, 1)]
    assert attempts == sorted(attempts)


def test_the_operator_reads_what_the_library_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    told = variables() | {"SPOT_CHECKPOINT_DIR": str(tmp_path / "ckpt"), "SPOT_TERMINATION_LOG": str(log)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    count = {"value": 0}
    training = Training({"count": (lambda: count, count.update)}, total_steps=3, save_every_steps=2)
    for _ in training.steps():
        count["value"] += 1
    training.complete(digest="sha256:0")
    report = read_report(log.read_text())
    assert report is not None
    assert (report.reason, report.step, report.total_steps, report.resumed_step) == ("Completed", 3, 3, 0)
    assert report.checkpoint_step == 3
    assert report.checkpoint_time is not None
    assert report.extras == {"digest": "sha256:0"}


def test_both_sides_have_the_same_word_for_a_volume_that_is_full() -> None:
    assert classify.VOLUME_FULL == report.VOLUME_FULL
