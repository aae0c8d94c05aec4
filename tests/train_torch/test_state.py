"""Torch's states: what is saved comes back exactly, and nothing in a file is ever run."""

import gc
import pickle
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedules

from spot_training.train import CheckpointError, Training, UnsavableStateError, checked, files, state


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOT_CHECKPOINT_DIR", "SPOT_FENCE", "SPOT_ATTEMPT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def _parts() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_model_optimizer_scheduler_and_all_generators_come_back(
    tmp_path: Path, compress: str | None, background: bool
) -> None:
    saved = _parts()
    training = Training(saved, directory=tmp_path, compress=compress, background=background)
    training.load()
    training.step = 7
    training.save().wait()
    training.close()
    [written] = tmp_path.glob("*/step-*/state.pt*")
    assert (written.suffix, written.read_bytes()[:2]) == (
        (".gz", b"\x1f\x8b") if compress else (".pt", b"PK")
    )
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    loaded = _parts()
    training = Training(loaded, directory=tmp_path)
    assert training.load() == 7
    training.close()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    for name, tensor in saved["model"].state_dict().items():
        assert torch.equal(tensor, loaded["model"].state_dict()[name]), name
    assert loaded["scheduler"].state_dict() == saved["scheduler"].state_dict()
    [before, after] = [parts["optimizer"].state_dict()["state"][0] for parts in (saved, loaded)]
    assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"])


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "state.pt"
    torch.save({"model": Evil()}, path)
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        state.read(file, "state.pt")
    assert not (tmp_path / "ran").exists()


def test_what_could_not_be_read_back_is_refused_at_the_start_by_name(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Schedule:
        factor = 1.0

        def __call__(self, epoch: int) -> float:
            return self.factor

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule())
    scheduler.note = np.zeros(3)
    training = Training({"scheduler": scheduler}, directory=tmp_path)
    with pytest.raises(UnsavableStateError, match=r"state\['scheduler'\]\['note'\] is a numpy.ndarray"):
        training.load()
    training.close()


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda optimizer: schedules.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda optimizer: schedules.MultiplicativeLR(optimizer, lambda _: 0.9),
    "StepLR": lambda optimizer: schedules.StepLR(optimizer, 2),
    "MultiStepLR": lambda optimizer: schedules.MultiStepLR(optimizer, [2, 4, 4, 7]),
    "ConstantLR": lambda optimizer: schedules.ConstantLR(optimizer, total_iters=5),
    "LinearLR": lambda optimizer: schedules.LinearLR(optimizer, total_iters=8),
    "ExponentialLR": lambda optimizer: schedules.ExponentialLR(optimizer, 0.9),
    "PolynomialLR": lambda optimizer: schedules.PolynomialLR(optimizer, 8),
    "CosineAnnealingLR": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 8),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedules.CosineAnnealingWarmRestarts(optimizer, 4),
    "CyclicLR": lambda optimizer: schedules.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda optimizer: schedules.OneCycleLR(optimizer, 0.1, total_steps=12),
    "ReduceLROnPlateau": lambda optimizer: schedules.ReduceLROnPlateau(optimizer, patience=1),
    "SWALR": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, 0.05, anneal_epochs=6),
    "SequentialLR": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.MultiStepLR(optimizer, [1, 2]), torch.optim.swa_utils.SWALR(optimizer, 0.05)],
        milestones=[4],
    ),
    "ChainedScheduler": lambda optimizer: schedules.ChainedScheduler(
        [schedules.MultiStepLR(optimizer, [2]), schedules.ExponentialLR(optimizer, 0.9)], optimizer=optimizer
    ),
}


def test_no_scheduler_of_torchs_is_forgotten() -> None:
    bases = {"LRScheduler", "_LRScheduler"}
    found = {
        name
        for module in (schedules, torch.optim.swa_utils)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, schedules.LRScheduler)
    }
    assert found - bases == SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torchs_goes_on_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    def make() -> dict[str, Any]:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "optimizer": optimizer, "scheduler": SCHEDULERS[name](optimizer)}

    def rates(parts: dict[str, Any], steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            parts["optimizer"].step()
            parts["scheduler"].step(*((1.0,) if name == "ReduceLROnPlateau" else ()))
            found.append(parts["optimizer"].param_groups[0]["lr"])
        return found

    expected = rates(make(), 9)
    for background in (False, True):
        directory = tmp_path / f"{background}"
        saved = make()
        before = rates(saved, 3)
        training = Training(saved, directory=directory, background=background)
        training.load()
        training.step = 3
        training.save().wait()
        training.close()
        loaded = make()
        training = Training(loaded, directory=directory)
        training.load()
        training.close()
        assert before + rates(loaded, 6) == expected


def test_numpys_scalars_become_pythons(tmp_path: Path) -> None:
    got: list[Any] = []
    parts: dict[str, Any] = {"x": (lambda: {"loss": np.float64(0.5), "count": np.int64(3)}, got.append)}
    training = Training(parts, directory=tmp_path)
    training.load()
    training.save().wait()
    training.close()
    training = Training(parts, directory=tmp_path)
    training.load()
    training.close()
    assert got == [{"loss": 0.5, "count": 3}]
    assert [type(value) for value in got[0].values()] == [float, int]


def test_a_disk_error_inside_torchs_writer_keeps_its_own_words(tmp_path: Path) -> None:
    training = Training({"model": torch.nn.Linear(1000, 1000)}, directory=tmp_path)
    training.load()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            training.save().wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        training.close()
    assert not list(tmp_path.glob("*/step-*"))


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    written = files.write_durably(path, lambda sink: state.write({"x": torch.randn(1000, 100)}, sink))
    with path.open("rb") as file:
        checked.verify(file, written)


def test_one_that_is_refused_for_its_size_leaves_nothing_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python tells of trouble on closing from 3.13 on, which this image has."""
    path = tmp_path / "state.pt"
    written = files.write_durably(path, lambda sink: state.write({"x": 1}, sink))
    path.write_bytes(b"cut")
    said, heard = "", list[str]()
    monkeypatch.setattr("sys.unraisablehook", lambda told: heard.append(repr(told.exc_value)))
    with path.open("rb") as file:
        try:
            checked.CheckedFile(file, written)
        except files.DamagedError as error:  # which nobody holds afterwards, and so nothing that it refers to
            said = str(error)
    gc.collect()
    assert "has 3 bytes" in said
    assert heard == []
