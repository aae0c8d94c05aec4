"""The Lightning `Trainer`, made preemptible by a callback.

    trainer = Trainer(max_epochs=10, callbacks=[Preemptible(save_every_steps=500)])
    trainer.fit(model, ResumableLoader(dataset, batch_size=32))

It saves what Lightning's own checkpoints hold, and the random numbers of each rank, after an optimizer's step. To go
on in the middle of an epoch Lightning needs a loader that tells its position: `spot_training.train.data` has one,
torchdata's `StatefulDataLoader` is another. Give loaders for validation a `generator` of their own: else the random
numbers of a run that is resumed at the end of an epoch, where Lightning does not validate again, are others.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from spot_training.train import state
from spot_training.train.checkpoint import Training
from spot_training.train.signals import EXIT_PREEMPTED, Preempted

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


class Preemptible(Callback):  # type: ignore[misc,unused-ignore]
    """Loads before the first step, saves in time, stops when told, and records the end, as `Training` does.

    On one device and with DDP; other strategies are refused: for sharded models use `Training` in a loop of your own.
    There is no `overlapped`: Lightning computes forward and backward pass within the optimizer's step.
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
    ) -> None:
        self._make = functools.partial(
            Training,
            directory=directory,
            save_every_steps=save_every_steps,
            save_every_seconds=save_every_seconds,
            keep=keep,
            keep_every_steps=keep_every_steps,
            compress=compress,
            background=background,
        )
        self.training: Training | None = None
        self._loaded: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Load, when the ranks have been joined and the optimizers made; Lightning restores its loops next."""
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise TypeError(
                f"the strategy {type(trainer.strategy).__name__} is not supported: use one device or DDP, or "
                "spot_training.train.Training in a loop of your own"
            )
        # Lightning's handler of SIGTERM speaks with the other ranks from within, whatever these are doing just then.
        trainer._signal_connector.register_signal_handlers = _leave_signals_alone
        connector = trainer._checkpoint_connector
        total = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
        self.training = self._make({"lightning": (connector.dump_checkpoint, self._keep)}, total_steps=total)
        with _leaving():
            self.training.load()
        if self._loaded is None:
            return
        if self._loaded["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] is False:
            self._random = state.random_states()
        connector._loaded_checkpoint, self._loaded = self._loaded, None
        connector.restore_datamodule()
        connector.restore_model()
        connector.restore_callbacks()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Undo what making the iterator of a resumed epoch has drawn from the random numbers."""
        if self._random:
            state.restore_random(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop where an optimizer has stepped: gradients that are still being added up are not saved."""
        training = self.training
        if training is None or trainer.global_step == training.step:
            return
        training.step = trainer.global_step - 1
        for name in ("loss", "train_loss"):
            if name in trainer.callback_metrics:
                training.extras[name] = float(trainer.callback_metrics[name])
        training.extras["epoch"] = trainer.current_epoch
        with _leaving():
            training.step_done()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record that the program is complete."""
        if self.training:
            self.training.complete()

    def complete(self, **extras: Any) -> None:
        """Add facts to what is recorded of the completed program, such as the final accuracy."""
        if self.training:
            self.training.complete(**extras)

    def _keep(self, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint


def _leave_signals_alone() -> None:
    """In place of what would take them from `Training`."""


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Leave as Lightning lets a program leave: a KeyboardInterrupt, which `Preempted` is too, it ends with 1."""
    try:
        yield
    except Preempted:
        raise SystemExit(EXIT_PREEMPTED) from None
