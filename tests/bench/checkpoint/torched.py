"""Kills and damage where torch saves: tensors, compressed files, and the shards of two ranks.

It runs in the training image and prints what it has found, as JSON: see `__main__`.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.fsdp  # once, and not in each trial
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from spot_training.train import PeerLostError
from spot_training.train.ranks import is_lost_peer
from tests.bench.checkpoint.damage import SAVED, Damages, save_steps, try_damages
from tests.bench.checkpoint.kills import Kills, Tell, kill_trials
from tests.bench.checkpoint.subject import State, be_quiet, open_training

_RANKS: Final = 2
_LENGTH: Final = 100_000
"""Bytes of the sharded tensor, as many on each rank."""


class Tensors:
    """A tensor that follows from the step alone, spread over the ranks where there are some, and the step."""

    def __init__(self) -> None:
        self._spread = distributed.is_initialized()
        self._state: dict[str, Any] = {}
        self.become(0)

    def become(self, step: int) -> None:
        data = _data(step)
        if self._spread:
            mesh = init_device_mesh("cpu", (_RANKS,))
            mine = data.chunk(_RANKS)[distributed.get_rank()].clone()
            self._state = {"step": step, "data": DTensor.from_local(mine, mesh, [Shard(0)])}
        else:
            self._state = {"step": step, "data": data}

    def is_of(self, step: int) -> bool:
        data, expected = self._state["data"], _data(step)
        if self._spread:
            data, expected = data.to_local(), expected.chunk(_RANKS)[distributed.get_rank()]
        return bool(self._state["step"] == step and torch.equal(data, expected))

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self._state = state


def _data(step: int) -> torch.Tensor:
    data = bytearray(hashlib.shake_128(b"step %d" % step).digest(_LENGTH))
    return torch.frombuffer(data, dtype=torch.uint8)


def damage_alone(directory: Path, count: int, seed: int) -> Damages:
    """Compressed files of torch's, of one process."""
    whole = directory / "alone"
    return try_damages(whole, save_steps(whole, Tensors, compress="gzip"), Tensors, count, seed)


def damage_shards(directory: Path, count: int, seed: int) -> Damages:
    """What two ranks have saved together, loaded by one."""
    whole = directory / "shards"
    store = directory / "damage-store"

    def save(rank: int) -> None:
        _join(store, rank)
        save_steps(whole, Tensors, sharded=True)

    pids = [_forked(functools.partial(save, rank)) for rank in range(_RANKS)]
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(ends), f"could not save: {ends}"
    # Another number of ranks: random numbers do not come back.
    drawn = dict.fromkeys(step for steps in SAVED.values() for step in steps)
    return try_damages(whole, drawn, Tensors, count, seed, sharded=True)


def kill_ranks(directory: Path, count: int, seed: int) -> Kills:
    """Two ranks, of which the one or the other or both are killed; every second trial compresses."""
    (directory / "stores").mkdir()
    place = directory / "kills"
    place.mkdir()
    return kill_trials(place, count, seed, functools.partial(_train, directory / "stores"))


def _train(stores: Path, directory: Path, number: int, tell: Tell, *, saves: bool) -> None:
    began = time.monotonic()
    # Which rank the trial is begun with, and so may be killed alone, is by turns.
    rank = number % _RANKS
    if os.fork() == 0:
        rank = (rank + 1) % _RANKS
    try:
        _join(stores / f"{number}", rank)
        _save_until_killed(directory, number, tell, began, saves=saves)
    except Exception as error:
        if not (saves and (isinstance(error, PeerLostError) or is_lost_peer(error))):
            raise
    finally:
        sys.stdout.flush()


def _save_until_killed(directory: Path, number: int, tell: Tell, began: float, *, saves: bool) -> None:
    first = distributed.get_rank() == 0
    background, compress = number // 2 % 2 == 0, "gzip" if number // 4 % 2 else None
    state: State = Tensors()
    training = open_training(directory, number, state, background=background, compress=compress, sharded=True)
    step = training.load()
    all_whole: list[Any] = [None] * _RANKS
    distributed.all_gather_object(all_whole, state.is_of(step))
    if first:
        facts = {"whole": all(all_whole), "passed_over": [item.reason for item in training.passed_over]}
        tell("loaded", step=step, seconds=time.monotonic() - began, **facts)
    while saves:
        began = time.monotonic()
        training.step += 1
        state.become(training.step)
        if first:
            tell("begun", step=training.step)
        save = training.save()
        if background:
            state.become(training.step + 1_000_000)  # what the next step would do meanwhile
        save.wait()
        if first:
            tell("acknowledged", step=training.step, seconds=time.monotonic() - began)
    distributed.barrier()


def _join(store: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=_RANKS)


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            distributed.barrier()
            code = 0
        finally:
            os._exit(code)
    return pid


_TRIALS: Final[dict[str, Callable[[Path, int, int], Kills | Damages]]] = {
    each.__name__: each for each in (kill_ranks, damage_alone, damage_shards)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("trial", choices=_TRIALS)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    random.seed(arguments.seed)
    be_quiet()
    found = _TRIALS[arguments.trial](arguments.directory, arguments.count, arguments.seed)
    print(json.dumps(vars(found)))


if __name__ == "__main__":
    main()
