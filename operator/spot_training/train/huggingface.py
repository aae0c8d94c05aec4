"""The Hugging Face `Trainer`, made preemptible by a callback.

    arguments = TrainingArguments(..., save_strategy="no")
    preemptible = Preemptible(save_every_steps=500)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[preemptible])
    trainer.train(resume_from_checkpoint=preemptible.checkpoint())

The `Trainer` writes its own checkpoint where it always does, when it is asked to, and knows best how to go on from
one. What it has written is then saved as a checkpoint of this library, whole or not at all, and removed; on a start it
is put back into a directory for the `Trainer` to read. Memory is not taken for it: the files are mapped.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerCallback

from spot_training.train.checkpoint import Training

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

_OF_ONE_RANK: Final = "rng_state"
_NOT_READ: Final = frozenset({"training_args.bin"})
"""A pickle, which is not read on resuming."""


class Preemptible(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Saves in time, stops when told, and records the end; see `Training` for what can be set.

    Make it after `TrainingArguments`, which join the ranks, and name it last among the callbacks. `scratch` is where
    a checkpoint is put back for the `Trainer`: room for model and optimizer; the system's directory for temporary
    files unless said. FSDP and DeepSpeed, whose checkpoints are directories, are refused: for them use `Training`.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = None,
        keep: int = 2,
        background: bool = False,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        self._scratch = scratch
        self._written: Path | None = None  # by the Trainer, when it was last asked to
        self._put_back: Path | None = None
        self._asked = False
        self._several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.training = Training(
            {"files": (lambda: self._files(own=False), self._restore)},
            per_rank={"files": (lambda: self._files(own=True), self._restore)},
            directory=directory,
            save_every_steps=save_every_steps,
            save_every_seconds=save_every_seconds,
            keep=keep,
            background=background,
        )

    def checkpoint(self) -> str | None:
        """For ``trainer.train(resume_from_checkpoint=...)``: the newest whole checkpoint; None to begin."""
        self.training.load()
        return str(self._put_back) if self._put_back else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check that the `Trainer` goes on from what was loaded."""
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ValueError(
                "FSDP and DeepSpeed write directories: use spot_training.train.Training for them"
            )
        if args.save_only_model:
            raise ValueError(
                "TrainingArguments(save_only_model=True) leaves out what is needed to go on: remove it"
            )
        if state.global_step != self.training.step:
            raise ValueError(
                f"the Trainer begins at step {state.global_step}, the checkpoint is of step {self.training.step}: "
                "call trainer.train(resume_from_checkpoint=preemptible.checkpoint())"
            )
        self.training.total_steps = state.max_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What was put back has been read by now."""
        self._remove(self._put_back)
        self._put_back = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the `Trainer` to write when it is time, or the last step is done."""
        self.training.step = state.global_step - 1
        self._asked = self.training.count_step() or state.global_step >= state.max_steps
        control.should_save = control.should_save or self._asked

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Another callback may have decided that this step is the last one."""
        if control.should_training_stop and not self._asked:
            self._asked = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save what the `Trainer` has written."""
        if not self._asked:
            return  # the program's own save_strategy
        self._asked = False
        if state.log_history:
            self.training.extras.update({key: state.log_history[-1].get(key) for key in ("loss", "epoch")})
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._written = written
        self.training.act()
        if self._several:
            torch.distributed.barrier()
        self._remove(written)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record that the program is complete."""
        self.training.complete()

    def complete(self, **extras: Any) -> None:
        """Add facts to what is recorded of the completed program, such as the final accuracy."""
        self.training.complete(**extras)

    def _files(self, *, own: bool) -> dict[str, Any]:
        """What the `Trainer` has written, mapped into memory: for this rank alone, or for all."""
        if self._written is None:
            return {}
        files = (path for path in sorted(self._written.iterdir()) if path.name not in _NOT_READ)
        rank = torch.distributed.get_rank() if self._several else 0
        mine = {f"{_OF_ONE_RANK}.pth", f"{_OF_ONE_RANK}_{rank}.pth"}
        wanted = [
            path for path in files if (path.name in mine if own else not path.name.startswith(_OF_ONE_RANK))
        ]
        return {path.name: _mapped(path) for path in wanted}

    def _restore(self, files: Mapping[str, Any]) -> None:
        if self._put_back is None:
            self._put_back = Path(tempfile.mkdtemp(prefix="spot-training-", dir=self._scratch))
        for name, content in files.items():
            if Path(name).name != name:
                raise ValueError(f"the checkpoint names a file {name!r} outside its directory")
            content.numpy().tofile(self._put_back / name)

    @staticmethod
    def _remove(path: Path | None) -> None:
        if path:
            shutil.rmtree(path, ignore_errors=True)


def _mapped(path: Path) -> Any:
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
