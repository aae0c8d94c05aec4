"""Trains a small convolutional network on pictures made from a seed, and can be interrupted at any time.

    python examples/train.py --steps 100 --directory /tmp/checkpoints
    torchrun --nproc-per-node 2 examples/train.py --steps 100 --directory /tmp/checkpoints

Everything is deterministic, on one process and on several, so that an interrupted run can be compared with an
uninterrupted one bit by bit: the order of the data is drawn from seed and step, dropout from generators that
the checkpoint holds. The last line is the SHA-256 of the weights.
"""

import argparse
import hashlib
import os
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spot_training.train import Training

PICTURES, SIDE, CLASSES = 512, 12, 4


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains a small network, preemptibly and deterministically.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="pictures per step, of all ranks together")
    parser.add_argument("--channels", type=int, default=8, help="the size of the network")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=None, metavar="STEPS")
    parser.add_argument(
        "--seconds-per-step", type=float, default=0.0, help="slow the program down, to interrupt it"
    )
    parser.add_argument("--print-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--background", action="store_true", help="write checkpoints while training goes on")
    parser.add_argument(
        "--overlapped", action="store_true", help="copy for that beside the next forward and backward pass"
    )
    parser.add_argument("--directory", help="where to save outside the operator, which names its own")
    return parser.parse_args()


def make_data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright bar, whose place is the class: something that can be learnt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (PICTURES,), generator=generator)
    pictures = torch.randn(PICTURES, 1, SIDE, SIDE, generator=generator)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        picture[0, :, label * 3 : label * 3 + 3] += 1.0
    return pictures, labels


def make_model(seed: int, channels: int) -> nn.Module:
    """The same first weights on every rank."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(channels * (SIDE // 2) ** 2, CLASSES),
    )


def digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights, in hex."""
    state: dict[str, Any] = model.state_dict()
    weights = hashlib.sha256()
    for name, tensor in state.items():
        weights.update(name.encode())
        weights.update(bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()))
    return weights.hexdigest()


def main() -> None:
    """Train."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        # Short, so that the death of a machine that closes no connection is noticed in a minute, not in thirty.
        distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    pictures, labels = make_data(arguments.seed)
    model = make_model(arguments.seed, arguments.channels)
    # DDP sorts the gradients into new buckets after its first step, and the order of an addition decides its last
    # bit: a run that was resumed would add in another order. It does not do so while it looks for unused weights.
    trained = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    torch.manual_seed(arguments.seed + 1000 * (1 + rank))  # each rank its own dropout

    training = Training(
        {"model": model, "optimizer": optimizer, "scheduler": scheduler},
        total_steps=arguments.steps,
        save_every_steps=arguments.save_every,
        directory=arguments.directory,
        background=arguments.background or arguments.overlapped,
        overlapped=arguments.overlapped,
    )
    for step in training.steps():
        order = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        mine = torch.randint(PICTURES, (arguments.batch,), generator=order)[rank::world]
        loss = nn.functional.cross_entropy(trained(pictures[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        training.extras["loss"] = loss.item()
        if rank == 0 and (step + 1) % arguments.print_every == 0:
            print(f"step {step + 1}/{arguments.steps} loss {loss.item():.6f}", flush=True)
        time.sleep(arguments.seconds_per_step)

    weights = digest(model)
    training.complete(digest=weights)
    if rank == 0:
        print(f"final weights sha256={weights}", flush=True)
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
