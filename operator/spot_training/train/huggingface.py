"""The Hugging Face `Trainer`, made preemptible by a callback.

    arguments = TrainingArguments(..., save_strategy="no")
    preemptible = Preemptible(save_every_steps=500)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[preemptible])
    trainer.train(resume_from_checkpoint=preemptible.checkpoint())

The `Trainer` writes its own checkpoint where it always does, when it is asked to, and knows best how to go on from
one. What it has written is then saved as a checkpoint of this library, whole or not at all, and removed, unless the
program's own ``save_strategy`` wanted it, too; on a start it is put back into a directory for the `Trainer` to read.
Memory is not taken for it: the files are mapped.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerCallback

from spot_training.train.checkpoint import Training
from spot_training.train.signals import Preempted

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
    files unless said. There is no `overlapped`: what is saved lies in files, which no step changes. FSDP and DeepSpeed,
    whose checkpoints are directories, are refused: for them use `Training`.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = None,
        keep: int = 2,
        keep_every_steps: int | None = None,
        compress: str | None = None,
        background: bool = False,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        self._scratch = scratch
        self._written: Path | None = None  # by the Trainer, of the step that is saved
        self._ours: Path | None = None  # the same, where nobody else wants it
        self._put_back: Path | None = None
        self._training = False
        self._asked = self._owed = False  # `_owed`: it was not heard
        self._theirs = False  # whether the program's own save_strategy wants what we have asked for
        self._limit: int | None = None  # the program's save_total_limit, while it is lifted
        self._saved_step: int | None = None
        self._several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.training = Training(
            {"files": (lambda: self._files(own=False), self._restore)},
            per_rank={"files": (lambda: self._files(own=True), self._restore)},
            directory=directory,
            save_every_steps=save_every_steps,
            save_every_seconds=save_every_seconds,
            keep=keep,
            keep_every_steps=keep_every_steps,
            compress=compress,
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
        self._training = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What was put back has been read by now, and what was written for us is not needed to complete."""
        self._owed, self._asked = self._asked, False
        self._tidy(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the `Trainer` to write when it is time, or the last step is done."""
        self.training.step = state.global_step - 1
        due, last = self.training.count_step() or self._owed, state.global_step >= state.max_steps
        # The evaluation after this step may end the training, and then nobody hears us: see `_ask`.
        too_late = args.save_strategy == "best" and args.eval_strategy == "epoch" and state.epoch % 1 == 0
        if due or last or too_late or control.should_training_stop:
            self._ask(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Another callback may have decided that this step is the last one."""
        if self._training and control.should_training_stop:
            self._ask(args, state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop in the middle of an evaluation, if its step is saved: the `Trainer` writes only after it.

        All ranks are here at each batch: the `Trainer` gathers what they have computed.
        """
        if self._training and self._saved_step == state.global_step and self.training.should_stop():
            self.training.stop()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As `on_log`; or the program has been told to stop meanwhile."""
        if self._training and (self.training.should_stop() or control.should_training_stop):
            self._ask(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As above; and the last epoch may have had fewer steps than were counted upon."""
        unheard, self._asked = self._asked, False
        if unheard or control.should_training_stop or state.epoch > state.num_train_epochs - 1:
            self._ask(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save what the `Trainer` has written."""
        self._restore_limit(args)
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # What the program's own save_strategy wants, or the Trainer has noted as the best, stays.
        theirs = self._theirs or not self._asked or state.best_model_checkpoint == str(written)
        self._ours = None if theirs else written
        if not self._asked:
            return
        self._asked = False
        if state.log_history:
            self.training.extras.update({key: state.log_history[-1].get(key) for key in ("loss", "epoch")})
        self._written, self._saved_step = written, state.global_step
        try:
            self.training.act()
        except Preempted:
            self._remove(self._ours)
            raise
        if self._several:
            torch.distributed.barrier()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record that the program is complete. Raises RuntimeError where its last step was not written."""
        self._training = False
        if self._saved_step != state.global_step and self._put_back is None:
            raise RuntimeError(
                f"another callback has ended the training after step {state.global_step}, when the Trainer could no "
                "longer be asked to write a checkpoint of it: name Preemptible last among the callbacks"
            )
        self.training.complete()
        self._tidy(args)

    def complete(self, **extras: Any) -> None:
        """Add facts to what is recorded of the completed program, such as the final accuracy."""
        self.training.complete(**extras)

    def _ask(self, args: Any, state: Any, control: Any) -> None:
        """Have the `Trainer` write a checkpoint of this step, once.

        With save_strategy "best" an evaluation overrules all who have asked before: it is written if it is the best.
        """
        if self._asked or self._saved_step == state.global_step:
            return
        only_best = args.save_strategy == "best" and control.should_evaluate
        self._asked, self._theirs = True, control.should_save or only_best
        control.should_save = True
        if not self._theirs and self._limit is None:
            # It would count ours among the program's, and remove one of these for it.
            self._limit, args.save_total_limit = args.save_total_limit, None

    def _restore_limit(self, args: Any) -> None:
        if self._limit is not None:
            args.save_total_limit, self._limit = self._limit, None

    def _tidy(self, args: Any) -> None:
        self._restore_limit(args)
        for path in (self._put_back, self._ours):
            self._remove(path)
        self._put_back = self._ours = self._written = None

    def _files(self, *, own: bool) -> dict[str, Any]:
        """What the `Trainer` has written, mapped into memory: for this rank alone, or for all."""
        source = self._written or self._put_back
        if source is None:
            return {}
        paths = {
            path.relative_to(source).as_posix(): path
            for path in sorted(source.rglob("*"))
            if path.is_file() and path.name not in _NOT_READ
        }
        rank = torch.distributed.get_rank() if self._several else 0
        mine = {f"{_OF_ONE_RANK}.pth", f"{_OF_ONE_RANK}_{rank}.pth"}
        return {
            name: _mapped(path)
            for name, path in paths.items()
            if (name in mine if own else not name.startswith(_OF_ONE_RANK))
        }

    def _restore(self, files: Mapping[str, Any]) -> None:
        if self._put_back is None:
            self._put_back = Path(tempfile.mkdtemp(prefix="spot-training-", dir=self._scratch))
        for name, content in files.items():
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"the checkpoint names a file {name!r} outside its directory")
            target = self._put_back / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            content.numpy().tofile(target)

    @staticmethod
    def _remove(path: Path | None) -> None:
        if path:
            shutil.rmtree(path, ignore_errors=True)


def _mapped(path: Path) -> Any:
    if not path.stat().st_size:
        return torch.empty(0, dtype=torch.uint8)  # no empty file can be mapped
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
