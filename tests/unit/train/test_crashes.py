"""Invariant: a checkpoint that is loaded is whole, and none that was acknowledged is lost, whatever fails."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from spot_training.train import checked
from tests.bench.checkpoint.crashes import Crashes, record_program, try_crashes
from tests.bench.checkpoint.damage import damage_trials
from tests.bench.checkpoint.kills import kill_trials
from tests.bench.checkpoint.recording import Event, Recording, Sync
from tests.unit.train.programs import Surroundings

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def record(tmp_path: Path) -> Recording:
    directory = tmp_path / "recorded"
    directory.mkdir()
    return record_program(directory, random.Random(20261121))


def _try(record: Recording, tmp_path: Path) -> Crashes:
    directory = tmp_path / "crashed"
    directory.mkdir()
    crashes = Crashes()
    try_crashes(record, directory, random.Random(20261121), crashes, limit=400)
    return crashes


def test_killed_at_random_instants_nothing_torn_is_loaded_and_nothing_acknowledged_is_lost(
    surroundings: Surroundings,
) -> None:
    kills = kill_trials(surroundings.directory, 60, seed=20261121)
    assert kills.acknowledged > 0 and kills.within_a_save > 0, kills
    assert (kills.torn_loads, kills.older_than_acknowledged) == ([], [])
    assert (kills.not_loaded, kills.passed_over) == ([], [])


def test_after_a_power_failure_nothing_torn_is_loaded_and_nothing_acknowledged_is_lost(
    record: Recording, tmp_path: Path
) -> None:
    crashes = _try(record, tmp_path)
    assert crashes.states > 100
    assert crashes.torn_loads + crashes.older_than_acknowledged + crashes.not_loaded == []


@pytest.mark.parametrize("forgotten", ["files", "directories"])
def test_a_program_that_forgets_to_flush_would_be_found_out(
    record: Recording, tmp_path: Path, forgotten: str
) -> None:
    """That is: the test above can fail."""

    def is_forgotten(event: object) -> bool:
        return isinstance(event, Sync) and (event.node in record.directories) == (forgotten == "directories")

    events = [event for event in record.events if not is_forgotten(event)]
    crashes = _try(replace(record, events=events), tmp_path)
    assert crashes.older_than_acknowledged


def test_a_program_that_neither_flushes_nor_verifies_would_be_found_out(
    record: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "verify", lambda file, expected: None)
    events: list[Event] = [event for event in record.events if not isinstance(event, Sync)]
    crashes = _try(replace(record, events=events), tmp_path)
    assert crashes.torn_loads or crashes.not_loaded


def test_no_damage_is_loaded(tmp_path: Path) -> None:
    damages = damage_trials(tmp_path, 250, seed=20261121)
    assert damages.outcomes["before"] > 50, damages
    assert (damages.loaded, damages.unreported) == ([], [])
