"""Lightning and the Hugging Face Trainer, interrupted in every way, within epochs too: bitwise-equal weights."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from spot_training.train import Training
from spot_training.train.data import ResumableLoader

SIGTERM, SIGINT, SIGKILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
MODULES = {
    "lightning_trainer.py": ("lightning.pytorch",),
    "hf_trainer.py": ("transformers.trainer", "transformers.models.gpt2.modeling_gpt2"),
}


@pytest.mark.parametrize(("world", "how"), [(1, ()), (2, ("--background",))])
@pytest.mark.parametrize("example", MODULES)
def test_interrupted_or_not_the_weights_are_bitwise_equal(
    make_job: Callable[..., Any], example: str, world: int, how: tuple[str, ...]
) -> None:
    program = {"example": example, "modules": MODULES[example], "brief_end": True}
    expected = make_job(world, "--steps", "60", **program).finish()
    job = make_job(world, "--steps", "60", "--seconds-per-step", "0.02", *how, **program)
    resumed = 0
    # 25 steps are an epoch of one rank in the one example, 16 in the other: 16 and 50 are the ends of such.
    for at_step, number in [(5, SIGTERM), (16, SIGINT), (29, SIGKILL), (50, SIGTERM)]:
        ranks = job.interrupt(at_step, number, rank=world - 1)
        ends = [rank.end() for rank in ranks]
        reports = [rank.report() for rank in ranks]
        if number == SIGKILL:
            assert ends[-1][0] == -SIGKILL
            resumed = reports[0]["checkpointStep"]
            continue
        assert [code for code, _ in ends] == [143] * world, ends
        assert {report["reason"] for report in reports} == {"Preempted"}, reports
        [stopped_at] = {(report["step"], report["checkpointStep"]) for report in reports}
        assert stopped_at[0] == stopped_at[1] >= at_step
        assert reports[0]["resumedStep"] == resumed, "nothing is computed twice"
        assert reports[0]["totalSteps"] == 60
        resumed = stopped_at[0]
    assert job.finish() == expected
    assert job.finish() == expected, "started again, it ends at once"


def _loader(rank: int = 0, world_size: int = 1, **options: Any) -> ResumableLoader:
    return ResumableLoader(
        TensorDataset(torch.arange(53)), 4, seed=5, rank=rank, world_size=world_size, **options
    )


def _take(loader: ResumableLoader, batches: int) -> list[list[int]]:
    stream = loader.endless()
    return [next(stream)[0].tolist() for _ in range(batches)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_goes_on_with_the_next_batch_in_any_epoch(tmp_path: Any, workers: int) -> None:
    expected = _take(_loader(), 40)
    assert len({index for batch in expected[:13] for index in batch}) == 52, (
        "an epoch gives each example once"
    )
    assert [index for batch in expected[:13] for index in batch] != list(range(52)), "shuffled"
    assert expected[:13] != expected[13:26], "each epoch has its own order"
    for taken in (1, 12, 13, 14, 27):
        loader = _loader(num_workers=workers)
        before = torch.get_rng_state()
        assert _take(loader, taken) == expected[:taken]
        assert torch.equal(torch.get_rng_state(), before), "the program's random numbers are left alone"
        again = _loader(num_workers=workers)
        again.load_state_dict(loader.state_dict())
        assert _take(again, 40 - taken) == expected[taken:]


def test_the_ranks_share_the_batches_and_another_number_of_them_goes_on() -> None:
    two = [_loader(rank, 2) for rank in range(2)]
    shares = [_take(loader, 4) for loader in two]
    one = ResumableLoader(TensorDataset(torch.arange(53)), 8, seed=5)
    together = _take(one, 9)
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in together[:4]]
    one.load_state_dict(two[0].state_dict())
    assert _take(one, 5) == together[4:]


def test_other_data_than_the_checkpoints_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOT_CHECKPOINT_DIR", "SPOT_FENCE", "SPOT_ATTEMPT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    training = Training({"data": _loader()}, directory=tmp_path)
    training.load()
    training.save().wait()
    training.close()
    again = Training(
        {"data": ResumableLoader(TensorDataset(torch.arange(54)), 4, seed=5)}, directory=tmp_path
    )
    with pytest.raises(ValueError, match="had 53 examples and the seed 5, these 54 and 5"):
        again.load()
    again.close()
    with pytest.raises(ValueError, match="53 examples make no batch of 30 on each of 2 ranks"):
        ResumableLoader(TensorDataset(torch.arange(53)), 30, world_size=2)
