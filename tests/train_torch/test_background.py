"""Saves in the background with torch's tensors: as they were at their step, in memory taken once."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spot_training.train import Training
from spot_training.train.problem import CheckpointError
from spot_training.train.snapshot import HostCopies


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPOT_CHECKPOINT_DIR", "SPOT_FENCE", "SPOT_ATTEMPT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_saved_is_the_state_at_the_step(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
    optimizer = torch.optim.AdamW(model.parameters())
    training = Training({"model": model, "optimizer": optimizer}, directory=tmp_path, background=True)
    training.load()
    expected: dict[str, torch.Tensor] = {}
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 300)).sum().backward()
        optimizer.step()
        training.step_done()
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        save = training.save()
        with torch.no_grad():
            for tensor in [*model.parameters(), optimizer.state_dict()["state"][0]["exp_avg"]]:
                tensor.add_(1.0)
        save.wait()
    training.close()
    loaded: dict[str, Any] = {}
    parts = {
        name: (dict, lambda state, name=name: loaded.update({name: state})) for name in ("model", "optimizer")
    }
    again = Training(parts, directory=tmp_path)
    assert again.load() == 5
    again.close()
    assert loaded["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded["model"][name], tensor), name
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], moments)


def test_copies_are_equal_apart_and_take_their_memory_once() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 5))
    wide = torch.randn(1000, 1000)
    states: dict[str, Any] = {
        "tied": [weight, weight],
        "part": wide[:, 3],
        "half": torch.randn(3).to(torch.bfloat16),
        "channels": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "sparse": torch.eye(3).to_sparse(),
        "gradient": torch.ones(2, requires_grad=True),
        "empty": torch.empty(0),
        "other": (1, "a", None, torch.Size([2]), {"x", "y"}, torch.float16),
    }
    copies = HostCopies({})
    first = copies.take(states)
    for name in ("part", "half", "channels", "gradient", "empty"):
        assert torch.equal(first[name], states[name]), name
        assert first[name].dtype == states[name].dtype
        assert first[name].requires_grad == states[name].requires_grad
    assert torch.equal(first["sparse"].to_dense(), torch.eye(3))
    assert first["other"] == states["other"]
    assert type(first["tied"][0]) is torch.nn.Parameter
    assert first["tied"][0].data_ptr() == first["tied"][1].data_ptr() != weight.data_ptr()
    assert first["part"].untyped_storage().nbytes() == 4000, "not the whole tensor that it is a part of"
    with torch.no_grad():
        weight.zero_()
    assert not torch.equal(first["tied"][0], weight)
    second = copies.take(states)
    assert torch.equal(second["tied"][1], weight)
    for name in ("part", "half", "channels"):
        assert second[name].data_ptr() == first[name].data_ptr(), "the same buffer"
    states["half"] = torch.randn(7)
    assert torch.equal(copies.take(states)["half"], states["half"]), "and a new one for a new shape"


class Ordinary:
    """A program that changes its parameters in its optimizer's steps only, and its buffers when it likes."""

    def __init__(self, directory: Path) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        parts = {"model": self.model, "optimizer": self.optimizer}
        self.training = Training(parts, directory=directory, background=True, overlapped=True)
        self.training.load()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 300)).sum().backward()

    def tensors(self) -> dict[str, torch.Tensor]:
        moments = self.optimizer.state_dict()["state"]
        return {
            **{name: tensor.clone() for name, tensor in self.model.state_dict().items()},
            **{f"{i}/{name}": tensor.clone() for i in moments for name, tensor in moments[i].items()},
        }


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Copying that is left for later does not begin before this is set."""
    free = threading.Event()
    finish: Callable[[HostCopies], None] = HostCopies.finish

    def finish_when_free(copies: HostCopies) -> None:
        free.wait(60)
        finish(copies)

    monkeypatch.setattr(HostCopies, "finish", finish_when_free)
    return free


def test_a_step_waits_for_the_copy_that_runs_beside_the_next_backward_pass(
    tmp_path: Path, held: threading.Event
) -> None:
    program = Ordinary(tmp_path)
    program.backward()
    program.optimizer.step()
    program.training.step_done()
    expected = program.tensors()
    save = program.training.save()
    program.backward()
    stepping = threading.Thread(target=program.optimizer.step)
    stepping.start()
    stepping.join(0.2)
    assert stepping.is_alive(), "nothing has been copied yet"
    for name, tensor in program.tensors().items():
        assert torch.equal(tensor, expected[name]) or "running" in name or "batches" in name, name
    held.set()
    stepping.join(60)
    assert not stepping.is_alive()
    save.wait()
    program.training.close()
    after = program.tensors()
    assert not torch.equal(after["0.weight"], expected["0.weight"])
    again = Ordinary(tmp_path)
    assert again.training.step == 1
    again.training.close()
    loaded = again.tensors()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name


def test_a_parameter_changed_outside_its_optimizer_spoils_the_save_and_nothing_else(
    tmp_path: Path, held: threading.Event
) -> None:
    program = Ordinary(tmp_path)
    held.set()
    program.training.step_done()
    program.training.save().wait()
    held.clear()
    program.training.step_done()
    save = program.training.save()
    with torch.no_grad():
        program.model[0].weight.clamp_(-0.01, 0.01)
    held.set()
    with pytest.raises(CheckpointError, match=r"0.weight.*outside its optimizer's step.*overlapped=True"):
        save.wait()
    program.training.step_done()
    program.training.close()
    again = Ordinary(tmp_path)
    assert again.training.step == 1, "the one before"
    again.training.close()


def test_overlapping_needs_an_optimizer_and_a_background(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="background=True"):
        Training({"model": model}, directory=tmp_path, overlapped=True)
    with pytest.raises(ValueError, match="an optimizer of torch among the parts in state"):
        Training({"model": model}, directory=tmp_path, background=True, overlapped=True)
