"""Trains a model whose weights and optimizer are spread over the ranks by FSDP, and can be interrupted at any time.

    torchrun --nproc-per-node 4 examples/fsdp.py --steps 100 --directory /tmp/checkpoints

Every rank saves its own shards, at the same time as the others; started with another number of ranks, the job goes on
from the same state. The lines for that are those of any other program: `Training` sees what is sharded. Runs on CPUs
with gloo; with GPUs, take the backend "nccl". The last line is the SHA-256 of the weights.
"""

import argparse
import hashlib
import time
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from spot_training.train import Training

WIDTH = 33  # no multiple of anything: shards differ in size


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains a sharded model, preemptibly and deterministically.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="examples per step, of all ranks together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=None, metavar="STEPS")
    parser.add_argument(
        "--seconds-per-step", type=float, default=0.0, help="slow the program down, to interrupt it"
    )
    parser.add_argument("--print-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--background", action="store_true", help="write checkpoints while training goes on")
    parser.add_argument("--directory", help="where to save outside the operator, which names its own")
    return parser.parse_args()


def digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights, in hex; all ranks together."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():  # of FSDP, the whole tensors
        weights.update(name.encode())
        weights.update(bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()))
    return weights.hexdigest()


def main() -> None:
    """Train."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(arguments.seed)  # the same first weights on every rank
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1)) for _ in range(3)]
    network = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
    # On GPUs `fully_shard` is the newer way, and saved and loaded alike; before torch 2.7 it does not train on CPUs.
    model = FullyShardedDataParallel(
        network,
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
        device_mesh=init_device_mesh("cpu", (world,)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    torch.manual_seed(arguments.seed + 1000 * (1 + rank))  # each rank its own dropout

    training = Training(
        {"model": model, "optimizer": optimizer, "scheduler": scheduler},
        total_steps=arguments.steps,
        save_every_steps=arguments.save_every,
        directory=arguments.directory,
        background=arguments.background,
    )
    for step in training.steps():
        order = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        inputs = torch.randn(arguments.batch, WIDTH, generator=order)[rank::world]
        loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
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


if __name__ == "__main__":
    main()
