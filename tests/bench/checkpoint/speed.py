"""What saving and loading cost a program with torch: run where torch is, prints samples as JSON.

The program is a network of linear layers with AdamW, whose state has the size that is asked for. Each trial is a
process of its own and measures everything once, what it is compared with right beside it, since a machine's speed
changes from minute to minute. What a load costs is measured in another process than the one that has saved: its
memory is new, and its optimizer has made no step, as in a program that was just started.
"""

import argparse
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import nn

from spot_training.train import Training
from tests.bench.checkpoint import plain

_WIDTH: Final = 2048
_BATCH: Final = 32
"""A step then takes a second or more on two cores, as of a program that needs a machine of its own."""
_BASE_STEPS: Final = 4
"""Undisturbed steps before each save."""
_LOADS: Final = 3
"""Loads in each trial: one is a fraction of a second, in which a disk's speed changes by a half."""


class Program:
    """A model, its optimizer, and a step, of which none is made yet.

    `size` is of the state after the first one, in bytes.
    """

    def __init__(self, megabytes: int) -> None:
        layer = _WIDTH * (_WIDTH + 1) * 4 * 3  # weights and AdamW's two moments
        torch.manual_seed(1)
        self.model = nn.Sequential(
            *(nn.Linear(_WIDTH, _WIDTH) for _ in range(round(megabytes * 1e6 / layer)))
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.data = torch.randn(_BATCH, _WIDTH)
        self.size = 3 * sum(parameter.nbytes for parameter in self.model.parameters())

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        self.model(self.data).square().mean().backward()
        self.optimizer.step()

    def parts(self) -> dict[str, Any]:
        """What is saved."""
        return {"model": self.model, "optimizer": self.optimizer}

    def digest(self) -> float:
        """A number that tells two states apart."""
        return float(sum(tensor.double().sum() * (i + 1) for i, tensor in enumerate(self._tensors())))

    def _tensors(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.parameters(), *moments]


def measure(directory: Path, megabytes: int, trial: int) -> dict[str, float]:
    """One trial: figures by name; times are seconds, memory is in states."""
    program = Program(megabytes)
    program.step()
    figures: dict[str, float] = {}
    # First, since no memory has been given back to the allocator yet.
    _stall(program, directory, figures, overlapped=True)
    _stall(program, directory, figures, overlapped=False)
    figures["torch_save"] = _torch_save(program, directory / "plain.pt")
    _write(program, directory, figures, trial)
    return figures


def _stall(program: Program, directory: Path, figures: dict[str, float], *, overlapped: bool) -> None:
    """What a save in the background adds to the steps; copied within one, or while the next one runs."""
    parts, way = program.parts(), "" if overlapped else "whole_"
    waited = [0.0]  # by optimizers' steps: what passes between a hook before the library's and one after it

    def note(sign: int) -> None:
        waited[0] += sign * time.monotonic()

    before_its = program.optimizer.register_step_pre_hook(lambda *_: note(-1))
    training = Training(parts, directory=directory / "stall", background=True, overlapped=overlapped)
    after_its = program.optimizer.register_step_pre_hook(lambda *_: note(1))
    training.load()
    gc.collect()
    _reset_peak()
    _undisturbed(program, training)
    before = _peak()  # of the steps themselves
    for stall in ("first_stall", "stall"):  # its buffers are there from the second on
        base, steps, waited[0] = _undisturbed(program, training), 0, 0.0
        began = time.monotonic()
        save = training.save()
        stood = time.monotonic() - began
        while save.saved is None:
            program.step()
            stood += _seconds(training.step_done)
            steps += 1
        figures[f"{way}added"] = time.monotonic() - began - steps * base
        figures[f"{way}{stall}"] = stood + waited[0]
    if overlapped:
        figures["memory"] = (_peak() - before) / program.size
    figures[f"{way}background"] = save.wait()
    figures["step"] = base
    training.close()
    before_its.remove()
    after_its.remove()
    shutil.rmtree(directory / "stall")


def _undisturbed(program: Program, training: Training) -> float:
    def step() -> None:
        program.step()
        training.step_done()

    return median(_seconds(step) for _ in range(_BASE_STEPS))


def _write(program: Program, directory: Path, figures: dict[str, float], trial: int) -> None:
    """A save at once, against plain writing of as many bytes."""
    os.sync()
    training = Training(program.parts(), directory=directory / "write")
    training.load()
    training.step += 1

    def save() -> None:
        figures["write"] = _seconds(lambda: training.save().wait())

    def write_plainly() -> None:
        figures["write_plain"] = plain.write(directory / "plain", program.size)

    for work in (save, write_plainly)[:: 1 if trial % 2 else -1]:
        work()
        plain.drop_from_cache(directory)
    size = sum(path.stat().st_size for path in (directory / "write").rglob("*.pt"))
    figures["write_ratio"] = figures["write_plain"] / program.size * size / figures["write"]
    training.close()
    (directory / "plain").unlink()
    shutil.rmtree(directory / "write")


def save_for_load(directory: Path, megabytes: int, _: int) -> dict[str, float]:
    """Save a checkpoint, and write a plain file of as many bytes, for `load` in another process."""
    program = Program(megabytes)
    program.step()
    training = Training(program.parts(), directory=directory / "load")
    training.load()
    training.step += 1
    training.save().wait()
    training.close()
    plain.write(directory / "plain", program.size)
    (directory / "digest").write_text(repr(program.digest()))
    return {}


def load(directory: Path, megabytes: int, trial: int) -> dict[str, float]:
    """Loading, against plain reading of as many bytes, with nothing of either in the page cache."""
    program = Program(megabytes)
    figures: dict[str, float] = {}
    training = Training(program.parts(), directory=directory / "load")

    def load() -> None:
        before = _reset_peak()
        figures["load"] = _seconds(training.load)
        figures["load_memory"] = (_peak() - before) / program.size

    def read_plainly() -> None:
        figures["load_plain"] = plain.read(directory / "plain")

    for work in (load, read_plainly)[:: 1 if trial % 2 else -1]:
        gc.collect()
        plain.drop_from_cache(directory)
        work()
    assert program.digest() == float((directory / "digest").read_text()), (
        "what was loaded is not what was saved"
    )
    figures["load_ratio"] = figures["load_plain"] / figures["load"]
    training.close()
    for name in ("plain", "digest"):
        (directory / name).unlink()
    shutil.rmtree(directory / "load")
    return figures


def _torch_save(program: Program, path: Path) -> float:
    """Seconds of what is usual in a loop: torch.save, here with fsync."""
    began = time.monotonic()
    state = {name: part.state_dict() for name, part in program.parts().items()}
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _reset_peak() -> int:
    """Let the peak of this process's memory begin anew; returns what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


_PARTS: Final[dict[str, Callable[[Path, int, int], dict[str, float]]]] = {
    part.__name__: part for part in (measure, save_for_load, load)
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, required=True)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument(
        "--part", choices=_PARTS, help="do this of `--trial` here; each has a process of its own"
    )
    parser.add_argument("--trial", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.part:
        logging.getLogger("spot_training.train").addHandler(logging.NullHandler())
        part = _PARTS[arguments.part]
        print(json.dumps(part(arguments.directory, arguments.megabytes, arguments.trial)))
        return
    samples: dict[str, list[float]] = defaultdict(list)

    def run(name: str, trial: int) -> None:
        chosen = ["--trial", str(trial), "--part", name]
        words = [sys.executable, "-m", __spec__.name, *sys.argv[1:], *chosen]
        output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        for figure, value in json.loads(output).items():
            samples[figure].append(value)

    for trial in range(arguments.trials):
        run("measure", trial)
        for number in range(_LOADS):
            run("save_for_load", trial * _LOADS + number)
            run("load", trial * _LOADS + number)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
