"""The example, interrupted in every way, gives the same weights to the last bit."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

SIGTERM, SIGINT, SIGKILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


def _size(how: tuple[str, ...]) -> tuple[str, ...]:
    """Small tensors are copied at once in any case."""
    return ("--channels", "120") if "--overlapped" in how else ()


@pytest.mark.parametrize(
    ("world", "how"),
    [(world, how) for world in [1, 2, 3] for how in [(), ("--background",)]],
)
def test_interrupted_or_not_the_weights_are_bitwise_equal(
    make_job: Callable[..., Any], world: int, how: tuple[str, ...]
) -> None:
    expected = make_job(world, "--steps", "60").finish()
    fresh = (world, how) == (1, ())
    job = make_job(world, "--steps", "60", "--seconds-per-step", "0.02", *how, fresh=fresh)
    resumed = 0
    for at_step, number in [(5, SIGTERM), (13, SIGINT), (29, SIGTERM), (43, SIGTERM)]:
        ranks = job.interrupt(at_step, number, rank=world - 1)
        ends = [rank.end() for rank in ranks]
        assert [code for code, _ in ends] == [143] * world, ends
        reports = [rank.report() for rank in ranks]
        assert {report["reason"] for report in reports} == {"Preempted"}, (
            "also of the ranks whose peer was told"
        )
        [stopped_at] = {(report["step"], report["checkpointStep"]) for report in reports}
        assert stopped_at[0] == stopped_at[1] >= at_step
        assert reports[0]["resumedStep"] == resumed, "nothing is computed twice"
        resumed = stopped_at[0]
    assert job.finish() == expected
    assert job.finish() == expected, "started again, it ends at once"


@pytest.mark.parametrize(
    ("world", "how"),
    [*((world, how) for world in [1, 2] for how in [(), ("--background",)]), (1, ("--overlapped",))],
)
def test_killed_without_notice_it_goes_on_from_the_last_save(
    make_job: Callable[..., Any], world: int, how: tuple[str, ...]
) -> None:
    expected = make_job(world, "--steps", "40", *_size(how)).finish()
    fresh = (world, how) == (2, ())
    job = make_job(world, "--steps", "40", *_size(how), "--seconds-per-step", "0.05", *how, fresh=fresh)
    for attempt, at_step in enumerate([11, 21], start=1):
        ranks = job.interrupt(at_step, SIGKILL, rank=world - 1)
        ends = [rank.end() for rank in ranks]
        assert ends[-1][0] == -SIGKILL
        assert ranks[-1].report()["reason"] == "Running"
        if world > 1:
            assert ends[0][0] == 1, ends[0][1]
            assert ranks[0].report()["reason"] == "PeerLost", ends[0][1]
        assert ranks[-1].report()["checkpointStep"] >= 8 * attempt
    assert job.finish() == expected


def test_an_unusable_directory_is_told_in_the_termination_message(
    make_job: Callable[..., Any],
) -> None:
    job = make_job(1, "--steps", "20")
    [rank] = job.start(SPOT_CHECKPOINT_DIR="/dev/null/checkpoints")
    code, output = rank.end()
    assert code == 1
    assert rank.report()["reason"] == "Failed"
    assert "cannot use the checkpoint directory /dev/null/checkpoints" in rank.report()["message"], output
