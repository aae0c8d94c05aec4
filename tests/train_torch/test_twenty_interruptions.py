"""Interrupted twenty times at random, by every signal and on every rank: final weights equal to the last bit."""

import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

INTERRUPTIONS, STEPS = 20, 240


@pytest.mark.parametrize(
    ("example", "world", "how"),
    [
        ("train.py", 1, ("--background",)),
        ("train.py", 4, ("--background",)),
        ("train.py", 4, ("--overlapped", "--channels", "120")),
        ("fsdp.py", 4, ("--background",)),
    ],
)
def test_twenty_random_interruptions_change_no_bit(
    make_job: Callable[..., Any], example: str, world: int, how: tuple[str, ...]
) -> None:
    words = ("--steps", str(STEPS), "--batch", "16", *how)
    expected = make_job(world, *words, example=example, brief_end=True).finish()
    job = make_job(world, *words, example=example, brief_end=True)
    chance = random.Random(20261121 + world)
    resumed = 0
    for _ in range(INTERRUPTIONS):
        number = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
        rank = chance.randrange(world)
        # A kill loses what came after the last save: let there be one, each eight steps, most times.
        ranks = job.interrupt(resumed + chance.randint(1, 10), number, rank)
        ends = [each.end() for each in ranks]
        if number != signal.SIGKILL:
            assert [code for code, _ in ends] == [143] * world, ends
        # Not what was told last: a save that has just ended may have been told to nobody.
        saved = (job.directory / "checkpoints").glob("*/step-*/manifest.json")
        resumed = max((int(each.parent.name.removeprefix("step-")) for each in saved), default=0)
        assert resumed + 10 < STEPS, "interrupted before its end"
    assert job.finish() == expected
