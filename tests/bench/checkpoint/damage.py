"""Bit flips, truncations, files swapped with others and other damage, in random places of a checkpoint directory."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spot_training.train import CheckpointError
from tests.bench.checkpoint.subject import Pattern, State, be_quiet, open_training, unflushed

_SIZE: Final = 20_000
SAVED: Final = {1: (100, 150), 2: (170, 190)}
"""The steps that each attempt saves. All four checkpoints are kept."""
_LATER: Final = 3


@dataclass
class Damages:
    """What loading after each damage has shown.

    `outcomes` counts ``newest`` (the damage was elsewhere, or made no difference), ``before`` (one before the newest
    was loaded), ``refused`` (none was loaded, with an error) and ``scratch`` (none was loaded, with no error).
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    loaded: list[str] = field(default_factory=list)
    """Where what was loaded is not what was saved at the step that it claims."""
    unreported: list[str] = field(default_factory=list)
    """Where an older one was loaded and nothing said which had been passed over."""


def save_steps(directory: Path, make: Callable[[], State], **arguments: Any) -> dict[int, Any]:
    """Save what is to be damaged; Python's random numbers at each step."""
    drawn: dict[int, Any] = {}
    for attempt, steps in SAVED.items():
        state = make()
        training = open_training(directory, attempt, state, keep=4, **arguments)
        training.load()
        for step in steps:
            training.step = step
            state.become(step)
            random.seed(step)
            drawn[step] = random.getstate()
            training.save().wait()
        training.close()
    return drawn


def damage_trials(directory: Path, count: int, seed: int) -> Damages:
    """Save once; then damage a copy in one random place and load from it, `count` times."""
    whole = directory / "whole"

    def make() -> State:
        return Pattern(_SIZE)

    be_quiet()
    return try_damages(whole, save_steps(whole, make), make, count, seed)


def try_damages(
    whole: Path,
    drawn: Mapping[int, Any],
    make: Callable[[], State],
    count: int,
    seed: int,
    **arguments: Any,
) -> Damages:
    """Damage a copy of `whole` in one random place and load from it, `count` times.

    Half of the damage comes before the loading attempt has started, half after it has recorded which checkpoints it
    accepts. `drawn`: what was saved of Python's random numbers at each step; None where they are not to come back.
    """
    chance = random.Random(seed)
    damages = Damages()
    for number in range(count):
        copy = whole.parent / f"copy-{number}"
        shutil.copytree(whole, copy)
        with unflushed():
            _try(copy, chance, damages, drawn, make(), arguments, early=number % 2 == 0)
        shutil.rmtree(copy)
    return damages


def _try(
    copy: Path,
    chance: random.Random,
    damages: Damages,
    drawn: Mapping[int, Any],
    state: State,
    arguments: Mapping[str, Any],
    *,
    early: bool,
) -> None:
    damage = chance.choice([_flip_a_bit, _flip_a_bit, _truncate, _swap, _swap, _lose_a_block, _append])
    said = ""
    training = None
    damages.kinds[damage.__name__.strip("_")] += 1
    try:
        if early:
            said = damage(copy, chance)
        training = open_training(copy, _LATER, state, **arguments)
        if not early:
            said = damage(copy, chance)
        step = training.load()
    except CheckpointError:
        damages.outcomes["refused"] += 1
        return
    finally:
        if training:
            training.close()
    newest = max(drawn)
    damages.outcomes["newest" if step == newest else "before" if step else "scratch"] += 1
    if step and (step not in drawn or not state.is_of(step) or drawn[step] not in (None, random.getstate())):
        damages.loaded.append(f"step {step} after {said}")
    if step != newest and not training.passed_over:
        damages.unreported.append(f"step {step} after {said}")


def _files(copy: Path) -> list[Path]:
    return sorted(path for path in copy.rglob("*") if path.is_file())


def _one(copy: Path, chance: random.Random) -> Path:
    """A file anywhere, or, more often, one of the newest checkpoint."""
    newest = [path for path in _files(copy) if path.parent.name.endswith(f"{max(SAVED[max(SAVED)])}")]
    return chance.choice(newest if chance.random() < 0.5 else _files(copy))


def _flip_a_bit(copy: Path, chance: random.Random) -> str:
    path = _one(copy, chance)
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bit {place} of {path} was flipped"


def _truncate(copy: Path, chance: random.Random) -> str:
    path = _one(copy, chance)
    data = path.read_bytes()
    length = chance.randrange(len(data))
    path.write_bytes(data[:length])
    return f"{path} was cut to {length} of {len(data)} bytes"


def _append(copy: Path, chance: random.Random) -> str:
    path = _one(copy, chance)
    more = chance.randbytes(chance.randint(1, 5000))
    path.write_bytes(path.read_bytes() + more)
    return f"{path} got {len(more)} bytes more"


def _lose_a_block(copy: Path, chance: random.Random) -> str:
    path = _one(copy, chance)
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data)) // 512 * 512
    end = min(start + 512, len(data))
    lost = end - start
    data[start:end] = bytes(lost) if chance.random() < 0.5 else chance.randbytes(lost)
    path.write_bytes(data)
    return f"the block at {start} of {path} was lost"


def _swap(copy: Path, chance: random.Random) -> str:
    """Two files, mostly of the same name, or two checkpoints as wholes, take each other's place."""
    paths = _files(copy)
    one = _one(copy, chance)
    if chance.random() < 0.3:
        paths = sorted(copy.glob("*/step-*"))
        one = chance.choice(paths)
    elif chance.random() < 0.7 and one.parent.name.startswith("step-"):
        paths = [path for path in paths if path.name == one.name]
    other = chance.choice([path for path in paths if path != one])
    aside = copy / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"{one} and {other} were swapped"
