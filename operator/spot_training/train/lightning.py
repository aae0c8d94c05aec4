"""The Lightning `Trainer`, made preemptible by a callback.

    trainer = Trainer(max_epochs=10, callbacks=[Preemptible(save_every_steps=500)])
    trainer.fit(model, ResumableLoader(dataset, batch_size=32))

It saves what Lightning's own checkpoints hold, and the random numbers of each rank, after an optimizer's step. To go
on in the middle of an epoch Lightning needs a loader that tells its position: `spot_training.train.data` has one,
torchdata's `StatefulDataLoader` is another. Give loaders for validation a `generator` of their own: else the random
numbers of a run that is resumed at the end of an epoch, where Lightning does not validate again, are others.

Told to stop while it validates, a program ends with the batch that it is at, if its last step is saved. What validation
may do to the model (averages are swapped in for it) must be in no checkpoint, so it is saved before: each time, unless
the last validation has shown to be short against the grace.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from typing import TYPE_CHECKING, Any, Final

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from spot_training.train import state
from spot_training.train.checkpoint import Training
from spot_training.train.environment import Settings
from spot_training.train.signals import EXIT_PREEMPTED, Preempted

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_GRACE: Final = 30.0
"""Seconds that are counted on where nobody says how long the grace is: Kubernetes' own default."""


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
        self._saved_step: int | None = None
        self._grace = Settings.read().grace or _GRACE
        self._validation_seconds = math.inf  # of the last one
        self._validating_since = 0.0
        self._batches_left = 0.0  # of this validation, that all ranks have

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
            if training.count_step():
                training.act()
            elif self._is_to_validate_long(trainer):
                training.save()
            else:
                return
        self._saved_step = training.step

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Agree on the number of batches at which all ranks are asked whether to stop: some may have more."""
        self._validating_since = time.monotonic()
        self._batches_left = _common_batches(trainer, pl_module) if _is_within_fit(trainer) else 0

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        """Stop, where nothing is lost by it. All ranks at the same batch."""
        self._batches_left -= 1
        training = self.training
        if training is None or self._batches_left < 0 or self._saved_step != training.step:
            return
        with _leaving():
            if training.should_stop():
                training.stop()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note how long it took."""
        if _is_within_fit(trainer):
            self._validation_seconds = time.monotonic() - self._validating_since

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record that the program is complete."""
        if self.training:
            self.training.complete()

    def complete(self, **extras: Any) -> None:
        """Add facts to what is recorded of the completed program, such as the final accuracy."""
        if self.training:
            self.training.complete(**extras)

    def _is_to_validate_long(self, trainer: Any) -> bool:
        """Whether what comes next is a validation that may not leave enough of the grace. All ranks together."""
        loop = trainer.fit_loop
        by_clock = getattr(trainer, "_val_check_time_interval", None) is not None  # by each rank's own
        if by_clock or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            return False
        return bool(trainer.strategy.broadcast(self._validation_seconds > self._grace / 2))

    def _keep(self, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint


def _is_within_fit(trainer: Any) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _common_batches(trainer: Any, module: Any) -> float:
    """So many batches all ranks validate, at least; infinite for one whose data have no length."""
    counts = trainer.num_val_batches
    sequential = trainer.fit_loop.epoch_loop.val_loop._is_sequential
    mine = float(sum(counts) if sequential else min(counts))
    if trainer.world_size == 1:
        return mine
    # A rank that has none at all is not here to agree.
    if any(
        getattr(each, "allow_zero_length_dataloader_with_multiple_devices", False)
        for each in (module, trainer.datamodule)
    ):
        return 0
    known = torch.tensor(0.0 if math.isinf(mine) else mine, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(known, reduce_op="min"))


def _leave_signals_alone() -> None:
    """In place of what would take them from `Training`."""


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Leave as Lightning lets a program leave: a KeyboardInterrupt, which `Preempted` is too, it ends with 1."""
    try:
        yield
    except Preempted:
        raise SystemExit(EXIT_PREEMPTED) from None
