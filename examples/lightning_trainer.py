"""Trains with the Lightning Trainer, and can be interrupted at any time, in the middle of an epoch, too.

    pip install lightning
    python examples/lightning_trainer.py --steps 100 --directory /tmp/checkpoints

One callback, and a loader that knows its place. The last line is the SHA-256 of the weights.
"""

import argparse
import hashlib
import os
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import TensorDataset

from spot_training.train.data import ResumableLoader
from spot_training.train.lightning import Preemptible

EXAMPLES, BATCH, WIDTH = 200, 8, 12


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains with Lightning, preemptibly and deterministically.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=None, metavar="STEPS")
    parser.add_argument(
        "--seconds-per-step", type=float, default=0.0, help="slow the program down, to interrupt it"
    )
    parser.add_argument("--print-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--background", action="store_true", help="write checkpoints while training goes on")
    parser.add_argument("--directory", help="where to save outside the operator, which names its own")
    return parser.parse_args()


class Regression(LightningModule):  # type: ignore[misc,unused-ignore]
    """Learns to add."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, 1))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        """The loss of one batch."""
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Progress(Callback):  # type: ignore[misc,unused-ignore]
    """Tells of steps, slowly if asked to."""

    def __init__(self, every: int, steps: int, seconds: float) -> None:
        self.every, self.steps, self.seconds = every, steps, seconds

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """One line every few steps."""
        if trainer.global_rank == 0 and trainer.global_step % self.every == 0:
            print(f"step {trainer.global_step}/{self.steps}", flush=True)
        time.sleep(self.seconds)


def main() -> None:
    """Train."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    # One pod is a node to Lightning, which has a name of its own for its number.
    os.environ.setdefault("NODE_RANK", os.environ.get("RANK", "0"))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    inputs = torch.randn(EXAMPLES, WIDTH)
    loader = ResumableLoader(
        TensorDataset(inputs, inputs.sum(1, keepdim=True)),
        BATCH,
        seed=arguments.seed,
        rank=rank,
        world_size=world,
    )
    model = Regression(arguments.steps)
    torch.manual_seed(arguments.seed + 1000 * (1 + rank))  # each rank its own dropout
    preemptible = Preemptible(
        save_every_steps=arguments.save_every, directory=arguments.directory, background=arguments.background
    )
    progress = Progress(arguments.print_every, arguments.steps, arguments.seconds_per_step)
    trainer = Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        num_nodes=world,
        devices=1,
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        callbacks=[progress, preemptible],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
    )
    trainer.fit(model, loader)

    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + tensor.numpy().tobytes())
    preemptible.complete(digest=weights.hexdigest())
    if rank == 0:
        print(f"final weights sha256={weights.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
