"""Sharded state: each rank writes its own, any number of ranks reads it, and nothing of it is ever run."""

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

from spot_training.train import PeerLostError, Training, UnsavableStateError

SIGTERM, SIGINT, SIGKILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
FULL = StateDictOptions(full_state_dict=True)


def _rank(rank: int, world: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    work(*arguments)
    distributed.barrier()  # and no destroy_process_group, which may hang right after gloo's last words (torch 2.6)


def _run(world: int, directory: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work on each of so many ranks."""
    store = directory / f"store-{len(list(directory.glob('store-*')))}"
    # Forked: torch is imported already, and this module need not be importable.
    start_processes(_rank, (world, str(store), work, arguments), nprocs=world, start_method="fork")


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 5), nn.BatchNorm1d(5))


def _wrap(model: nn.Module, how: str) -> nn.Module:
    if how == "plain":
        return model
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if how == "fsdp1":
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    if how == "fsdp2":
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    assert how == "tensor-parallel"
    for layer, placement in ((model[0], Shard(0)), (model[2], Shard(1))):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [placement]))
        layer.bias = nn.Parameter(distribute_tensor(layer.bias.detach(), mesh, [Replicate()]))
    return model


def _program(how: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = _wrap(_network(), how)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def _whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer without shards, under the names that they have on any number of ranks."""
    return {
        "model": get_model_state_dict(model, options=FULL),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FULL),
    }


def _gradients(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some steps with gradients that are the same on every rank."""
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
        optimizer.step()


def _save(directory: Path, how: str, background: bool, compress: str | None = None) -> None:
    model, optimizer = _program(how)
    options: dict[str, Any] = {"background": background, "compress": compress, "total_steps": 9}
    training = Training({"model": model, "optimizer": optimizer}, directory=directory, **options)
    training.load()
    assert not optimizer.state, "to look at it has not made a step"
    _gradients(model, optimizer, 3)
    training.step = 3
    save = training.save()
    expected = copy.deepcopy(_whole(model, optimizer))
    if background:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # the copy is not touched by what comes after
    save.wait()
    if distributed.get_rank() == 0:
        torch.save(expected, directory / "expected.pt")
    training.close()


def _load(directory: Path, how: str) -> None:
    model, optimizer = _program(how)
    if distributed.get_world_size() == 2:  # into an optimizer that has stepped, and into a new one
        _gradients(model, optimizer, 1)
    training = Training({"model": model, "optimizer": optimizer}, directory=directory, total_steps=9)
    assert training.load() == 3
    assert training.passed_over == []
    training.close()
    expected = torch.load(directory / "expected.pt", weights_only=True)
    loaded = _whole(model, optimizer)
    assert loaded["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.equal(loaded["model"][name], tensor), name
    assert loaded["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
    for name, state in expected["optimizer"]["state"].items():
        for key, tensor in state.items():
            assert torch.equal(loaded["optimizer"]["state"][name][key], tensor), (name, key)
    assert [group["weight_decay"] for group in loaded["optimizer"]["param_groups"]] == [0.1]


@pytest.mark.parametrize(
    ("how", "world", "background", "then"),
    [
        ("fsdp2", 2, False, [("fsdp2", 2), ("fsdp2", 3), ("plain", 1)]),
        ("fsdp2", 3, True, [("fsdp2", 1), ("ddp", 2), ("fsdp1", 2)]),
        ("fsdp1", 2, False, [("fsdp1", 3), ("fsdp2", 2)]),
        ("tensor-parallel", 2, True, [("tensor-parallel", 3), ("fsdp2", 2)]),
        ("ddp", 2, False, [("fsdp2", 3), ("tensor-parallel", 2)]),
    ],
)
def test_what_one_number_of_ranks_has_saved_another_loads_bit_for_bit(
    tmp_path: Path, how: str, world: int, background: bool, then: list[tuple[str, int]]
) -> None:
    _run(world, tmp_path, _save, tmp_path, how, background)
    for other, size in then:
        _run(size, tmp_path, _load, tmp_path, other)


def test_each_rank_writes_its_own_and_the_contents_are_no_pickle(tmp_path: Path) -> None:
    _run(2, tmp_path, _save, tmp_path, "fsdp2", False)
    [step] = tmp_path.glob("*/step-*")
    written = {path.name for path in step.iterdir()}
    assert written >= {"shard-00000.pt", "shard-00001.pt", "shards.json", "state.pt", "manifest.json"}
    contents = {
        tuple(each["path"]): each for each in json.loads((step / "shards.json").read_text())["tensors"]
    }
    weight = contents["model", "0.weight"]
    assert weight["size"] == [13, 7]
    assert [(offsets, rank) for offsets, _, rank, _ in weight["chunks"]] == [([0, 0], 0), ([7, 0], 1)]
    common = torch.load(step / "state.pt", weights_only=True)
    assert common["model"]["0.weight"] is None
    assert torch.is_tensor(common["model"]["3.running_mean"])
    listed = json.loads((step / "manifest.json").read_text())["files"]
    assert listed.keys() == written - {"manifest.json"}


def _pass_over(directory: Path) -> None:
    model, optimizer = _program("fsdp2")
    training = Training({"model": model, "optimizer": optimizer}, directory=directory)
    assert training.load() == 4
    [passed_over] = training.passed_over
    assert "shard-00001.pt" in passed_over.reason
    training.close()


def _save_two(directory: Path, compress: str | None) -> None:
    model, optimizer = _program("fsdp2")
    training = Training({"model": model, "optimizer": optimizer}, directory=directory, compress=compress)
    training.load()
    for step in (4, 5):
        _gradients(model, optimizer, 1)
        training.step = step
        training.save().wait()
    training.close()


def test_compressed_shards_are_loaded_bit_for_bit(tmp_path: Path) -> None:
    _run(2, tmp_path, _save, tmp_path, "fsdp2", True, "gzip")
    shards = sorted(path.name for path in tmp_path.glob("*/step-*/shard-*"))
    assert shards == ["shard-00000.pt.gz", "shard-00001.pt.gz"]
    _run(3, tmp_path, _load, tmp_path, "fsdp2")


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_damaged_shard_has_the_checkpoint_passed_over_on_all_ranks(
    tmp_path: Path, compress: str | None
) -> None:
    _run(2, tmp_path, _save_two, tmp_path, compress)
    [shard] = tmp_path.glob("*/step-000000000005/shard-00001.pt*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    _run(2, tmp_path, _pass_over, tmp_path)


def _save_pair(directory: Path, sharded: bool | None) -> None:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    values = {"average": distribute_tensor(torch.arange(10.0), mesh, [Shard(0)])}
    training = Training({"ema": (lambda: values, values.update)}, directory=directory, sharded=sharded)
    if sharded is None:
        refusal = r"state\['ema'\]\['average'\] is spread .*sharded=True"
        first = distributed.get_rank() == 0
        with pytest.raises(UnsavableStateError if first else PeerLostError, match=refusal if first else None):
            training.load()
        training.close()
        os._exit(0)  # a lost peer is past all barriers
    training.load()
    training.step = 1
    training.save().wait()
    with torch.no_grad():
        values["average"].to_local().zero_()
    training.close()
    again = Training({"ema": (lambda: values, values.update)}, directory=directory, sharded=True)
    assert again.load() == 1
    assert isinstance(values["average"], DTensor)
    assert torch.equal(values["average"].full_tensor(), torch.arange(10.0))
    again.close()


@pytest.mark.parametrize("sharded", [None, True])
def test_sharded_tensors_of_ones_own_are_named_or_said_to_be(tmp_path: Path, sharded: bool | None) -> None:
    _run(2, tmp_path, _save_pair, tmp_path, sharded)


def _load_another_shape(directory: Path) -> None:
    model = nn.Sequential(nn.Linear(7, 14), nn.Tanh(), nn.Linear(14, 5), nn.BatchNorm1d(5))
    fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    training = Training({"model": model}, directory=directory)
    with pytest.raises(
        ValueError, match=r"'0.weight'\] has the shape \[13, 7\] in the checkpoint and \[14, 7\]"
    ):
        training.load()
    training.close()


def test_another_shape_is_told_by_name(tmp_path: Path) -> None:
    _run(2, tmp_path, _save, tmp_path, "fsdp2", False)
    _run(2, tmp_path, _load_another_shape, tmp_path)


@pytest.mark.parametrize("how", [(), ("--background",)])
def test_the_sharded_example_interrupted_or_not_gives_the_same_weights(
    make_job: Callable[..., Any], how: tuple[str, ...]
) -> None:
    expected = make_job(3, "--steps", "40", example="fsdp.py").finish()
    slow = ("--seconds-per-step", "0.02")
    job = make_job(3, "--steps", "40", *slow, *how, example="fsdp.py", fresh=not how)
    for at_step, number, code in [(5, SIGTERM, 143), (13, SIGKILL, None), (25, SIGINT, 143)]:
        ends = [rank.end() for rank in job.interrupt(at_step, number, rank=2)]
        if code:
            assert [each for each, _ in ends] == [code] * 3, ends
    assert job.finish() == expected
