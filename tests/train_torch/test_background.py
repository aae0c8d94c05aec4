"""Saves in the background with torch's tensors: as they were at their step, in memory taken once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spot_training.train import Training
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
    copies = HostCopies()
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
