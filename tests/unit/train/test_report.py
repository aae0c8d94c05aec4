import json
from pathlib import Path
from typing import Any

import pytest

from spot_training.train.report import MAX_BYTES, TerminationLog, encode, format_time

REQUIRED: dict[str, Any] = {
    "reason": "Running",
    "step": 10**12,
    "totalSteps": 10**12,
    "checkpointStep": 10**12,
    "checkpointTime": format_time(1775624400.9996),
    "saveSeconds": 1234.567,
    "loadSeconds": 1234.567,
    "resumedStep": 10**12,
    "resumedTime": format_time(1775624400.9996),
}


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f525", '"', "\n"])
@pytest.mark.parametrize("length", [0, 900, 3000, 100_000])
def test_a_report_is_one_line_within_the_limit_whatever_the_user_puts_in(length: int, letter: str) -> None:
    line = encode(
        {
            **REQUIRED,
            "message": letter * length,
            "extras": {"note": letter * length},
            "passedOver": [{"checkpoint": letter * length, "reason": letter * length}] * 40,
        }
    )
    assert len(line) <= MAX_BYTES
    assert line.count(b"\n") == 1
    record = json.loads(line)
    assert {name: record[name] for name in REQUIRED} == REQUIRED
    if length == 900 and letter == "x":
        assert record["message"] == letter * length, "what is needed most is left out last"


def test_a_loss_that_became_nan_is_still_json() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = encode({**REQUIRED, "extras": {"loss": float("nan"), "norm": [float("inf")]}})
    assert json.loads(line, parse_constant=refuse)["extras"] == {"loss": None, "norm": [None]}


def test_a_shorter_report_leaves_nothing_of_a_longer_one_and_the_file_is_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    log = TerminationLog(path)
    inode = path.stat().st_ino
    log.write({**REQUIRED, "message": "x" * 500})
    long = path.stat().st_size
    log.write(REQUIRED)
    assert json.loads(path.read_text()) == REQUIRED
    assert path.stat().st_size == long, "overwritten in place, never cut first"
    assert path.stat().st_ino == inode
    path.write_bytes(b"y" * 9000)
    log.write(REQUIRED)
    assert json.loads(path.read_text()) == REQUIRED


def test_outside_kubernetes_nothing_is_made(tmp_path: Path) -> None:
    TerminationLog(tmp_path / "termination-log").write(REQUIRED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (1775624400.25, "2026-04-08T05:00:00.250Z")]
)
def test_times_are_rfc_3339(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
