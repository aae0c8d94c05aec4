"""The Lightning Trainer beside its own validation, and with what can be set."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo
from lightning.pytorch import LightningModule, Trainer
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader, TensorDataset

from spot_training.train import Training
from spot_training.train.data import ResumableLoader
from spot_training.train.lightning import Preemptible

STEPS, IN_AN_EPOCH, VALIDATED = 12, 4, 6


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOT_CHECKPOINT_DIR", "SPOT_FENCE", "SPOT_ATTEMPT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


class Regression(LightningModule):  # type: ignore[misc,unused-ignore]
    """Learns to add; `stop_at` is the step and the batch of the validation after it at which it is told to stop."""

    def __init__(self, stop_at: tuple[int, int] | None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Linear(3, 1))
        self.stop_at = stop_at
        self.validated: list[tuple[int, int]] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.network(inputs), targets)

    def validation_step(self, batch: Any, number: int) -> None:
        if self.trainer.sanity_checking:
            return
        self.validated.append((self.global_step, number))
        if self.stop_at == self.validated[-1]:
            os.kill(os.getpid(), signal.SIGTERM)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _train(
    directory: Path, stop_at: tuple[int, int] | None = None, longer: int = 0, **options: Any
) -> tuple[Training, Regression, int]:
    """One attempt; what it has validated and the exit code. The last rank has `longer` more batches to validate."""
    torch.manual_seed(1)
    several = distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
    last = rank == world - 1
    inputs = torch.randn(2 * world * IN_AN_EPOCH, 3)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    loader = ResumableLoader(data, 2, seed=1, rank=rank, world_size=world)
    count = VALIDATED + (longer if last else 0)
    held_out = DataLoader(TensorDataset(torch.randn(count, 3)), generator=torch.Generator())
    model = Regression(stop_at if last else None)
    preemptible = Preemptible(directory=directory / "checkpoints", **{"save_every_steps": 1000, **options})
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        num_nodes=world,
        devices=1,
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        use_distributed_sampler=False,
        callbacks=[preemptible],
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
    )
    code = 0
    try:
        trainer.fit(model, loader, held_out)
    except SystemExit as end:
        code = int(end.code or 0)
    assert preemptible.training
    preemptible.training.close()
    return preemptible.training, model, code


def _rank(rank: int, world: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"NODE_RANK": str(rank), "LOCAL_RANK": "0"}
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    work(*arguments)
    if world > 1:
        distributed.barrier()  # and no destroy_process_group, which may hang right after gloo's last words (torch 2.6)


def _run(world: int, directory: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work on each of so many ranks; forked, for Lightning is imported already."""
    store = directory / f"store-{len(list(directory.glob('store-*')))}"
    start_processes(_rank, (world, str(store), work, arguments), nprocs=world, start_method="fork")


def _stopped_and_not(directory: Path, longer: int, background: bool) -> None:
    options: dict[str, Any] = {"longer": longer, "background": background}
    _, expected, _ = _train(directory / "whole", **options)
    at = (2 * IN_AN_EPOCH, 3)
    os.environ["SPOT_GRACE_SECONDS"] = "0.001"  # any validation may take longer than that
    stopped, model, code = _train(directory / "stopped", at, **options)
    assert (code, stopped.step) == (143, at[0])
    assert model.validated[-1] == at, "it ends with this batch"
    resumed, model, code = _train(directory / "stopped", **options)
    assert (code, resumed.resumed_step, resumed.step) == (0, at[0], STEPS)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("world", "longer"), [(1, 0), (2, 0), (2, 5)])
@pytest.mark.parametrize("background", [False, True])
def test_told_to_stop_while_it_validates_it_ends_at_once_and_loses_no_step(
    tmp_path: Path, world: int, longer: int, background: bool
) -> None:
    _run(world, tmp_path, _stopped_and_not, tmp_path, longer, background)


def _short(directory: Path) -> None:
    os.environ["SPOT_GRACE_SECONDS"] = "3600"
    at = (2 * IN_AN_EPOCH, 3)
    stopped, model, code = _train(directory, at)
    saved = sorted(path.name for path in directory.glob("checkpoints/*/step-*"))
    # Before the first validation nobody knows how long it takes.
    assert saved == [f"step-{step:012}" for step in (IN_AN_EPOCH, at[0] + 1)]
    assert (code, stopped.step) == (143, at[0] + 1)
    assert model.validated[-1] == (at[0], VALIDATED - 1), "to its end"


def test_before_a_validation_that_is_short_it_does_not_save(tmp_path: Path) -> None:
    _run(1, tmp_path, _short, tmp_path)


def _thinned_out(directory: Path) -> None:
    _train(directory, save_every_steps=2, keep=1, keep_every_steps=4, compress="gzip")
    saved = sorted(directory.glob("checkpoints/*/step-*"))
    assert [path.name for path in saved] == [f"step-{step:012}" for step in (4, 8, 12)]
    assert all((path / "state.pt.gz").stat().st_size for path in saved)
    again, _, _ = _train(directory)
    assert again.resumed_step == STEPS


def test_its_checkpoints_are_thinned_out_and_compressed_as_said(tmp_path: Path) -> None:
    _run(1, tmp_path, _thinned_out, tmp_path)
