"""The benchmarks' table and file."""

import json
from pathlib import Path

import pytest

from tests.bench.report import Report, nearest_rank


def test_a_percentile_is_a_sample_that_was_measured() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert nearest_rank(samples, 99) == 99
    assert nearest_rank(samples, 100) == 100
    assert nearest_rank([7.0], 99) == 7


def test_the_file_has_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("agent")
    report.trials("cordon", [1.0, 2.0, 4.0], "s", "<= 3", baseline=4.0)
    report.value("left", 0, "pods", "= 0")
    rows = json.loads(report.finish(tmp_path).read_text())
    assert rows[0] == {
        "name": "cordon",
        "value": 2.0,
        "unit": "s",
        "goal": "<= 3",
        "baseline": 4.0,
        "ratio": 0.5,
        "trials": 3,
        "min": 1.0,
        "median": 2.0,
        "max": 4.0,
    }
    assert rows[1]["value"] == 0 and rows[1]["ratio"] is None
    *known, head, cordon, _ = capsys.readouterr().out.splitlines()
    assert known == ["    cordon: 2 s", "    left: 0 pods"], "each is said when it is measured"
    assert head.split()[:3] == ["name", "value", "unit"] and cordon.split()[:2] == ["cordon", "2"]


def test_notes_are_printed_under_the_table_and_are_not_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("agent")
    report.value("lost", 1, "taints", "<= 0")
    report.notes.append("node-1 lost a taint")
    assert len(json.loads(report.finish(tmp_path).read_text())) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "node-1 lost a taint"


def test_no_trial_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trial"):
        Report("agent").trials("cordon", [], "s")


def test_a_goal_that_is_missed_is_named() -> None:
    report = Report("x")
    report.value("torn", 0, "loads", "= 0")
    report.value("ratio", 0.05, "ratio", "<= 0.05")
    report.value("seconds", 3, "s")
    assert report.missed() == []
    report.value("bitflips", 2, "loads", "= 0")
    report.trials("trials", [1.0, 3.0, 2.0], "x", ">= 2.5")
    assert report.missed() == ["bitflips is 2, goal = 0", "trials is 2, goal >= 2.5"]


def test_a_goal_that_compares_nothing_is_refused() -> None:
    report = Report("x")
    report.value("ratio", 1.0, "ratio", "about 1")
    with pytest.raises(ValueError, match="ratio has the goal 'about 1': begin it with one of <=, >=, ="):
        report.missed()
