"""Which checkpoints stay, and in what form they are written."""

import gzip
import sys
from pathlib import Path

import pytest

from spot_training.train import CheckpointError, Training
from spot_training.train.directory import Keep
from spot_training.train.manifest import Entry
from tests.unit.train.programs import Surroundings, Weights, save_steps


def _entries(*steps: int) -> list[Entry]:
    return [Entry(Path("/ckpt"), "fence", step, "") for step in sorted(steps, reverse=True)]


@pytest.mark.parametrize(
    ("keep", "steps", "left"),
    [
        (Keep(2), (10, 20, 30), [30, 20]),
        (Keep(1, every_steps=100), (50, 90, 110, 150, 210, 250), [250, 210, 110]),
        (Keep(2, every_steps=100), (110, 130, 220), [220, 130, 110]),
        (Keep(1, every_steps=1000), (10, 20), [20]),
    ],
)
def test_the_newest_and_the_first_of_each_so_many_steps_stay(
    keep: Keep, steps: tuple[int, ...], left: list[int]
) -> None:
    assert [entry.step for entry in keep.choose(_entries(*steps))] == left


def test_what_stays_is_chosen_alike_after_each_save_and_in_each_attempt(surroundings: Surroundings) -> None:
    weights = Weights()
    training = surroundings.open(1, weights, keep=1, keep_every_steps=100)
    save_steps(training, weights, 40, 90, 130, 170, 210)
    assert surroundings.steps(1) == [130, 210]
    again = surroundings.open(2, weights, keep=1, keep_every_steps=100)
    save_steps(again, weights, 260, 320, 350)
    assert (surroundings.steps(1), surroundings.steps(2)) == ([130, 210], [320, 350])
    last = surroundings.open(3, weights)
    assert last.load() == 350


def test_a_compressed_checkpoint_is_smaller_and_is_loaded_by_who_does_not_compress(
    surroundings: Surroundings,
) -> None:
    weights = Weights(padding=100_000)
    save_steps(surroundings.open(1, weights, compress="gzip"), weights, 100)
    [written] = surroundings.path(1, 100).glob("state.json*")
    assert written.name == "state.json.gz"
    assert written.stat().st_size < 10_000
    assert b'"padding"' in gzip.decompress(written.read_bytes()), "any tool reads it"
    loaded = Weights()
    assert surroundings.open(2, loaded).load() == 100
    assert loaded.drawn == [100.0]


def test_a_damaged_compressed_checkpoint_is_passed_over(surroundings: Surroundings) -> None:
    weights = Weights(padding=100_000)
    save_steps(surroundings.open(1, weights, compress="gzip"), weights, 100)
    path = surroundings.path(1, 100) / "state.json.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="none is whole"):
        surroundings.open(2, Weights()).load()


def test_a_compression_that_is_not_there_is_refused_by_name(surroundings: Surroundings) -> None:
    surroundings.attempt(1)
    with pytest.raises(ValueError, match=r"compress='bzip' cannot be used: use 'gzip', 'zstd' or None"):
        Training({"weights": Weights()}, compress="bzip")
    if sys.version_info < (3, 14):
        with pytest.raises(ValueError, match=r"compress='zstd' cannot be used: it needs Python 3\.14"):
            Training({"weights": Weights()}, compress="zstd")
    with pytest.raises(ValueError, match="keep_every_steps=0 must be above 0"):
        Training({"weights": Weights()}, keep_every_steps=0)
