"""Trains a small language model with the Hugging Face Trainer, and can be interrupted at any time.

    pip install transformers accelerate
    python examples/hf_trainer.py --steps 100 --directory /tmp/checkpoints

The model is made from a configuration: nothing is downloaded. The last line is the SHA-256 of the weights.
"""

import argparse
import hashlib
import os
import tempfile
import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from spot_training.train.huggingface import Preemptible

TEXTS, LENGTH, WORDS = 128, 16, 64


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains with the Hugging Face Trainer, preemptibly.")
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


class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Tells of steps, slowly if asked to."""

    def __init__(self, every: int, seconds: float) -> None:
        self.every, self.seconds = every, seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One line every few steps."""
        if args.process_index == 0 and state.global_step % self.every == 0:
            print(f"step {state.global_step}/{state.max_steps}", flush=True)
        time.sleep(self.seconds)


def main() -> None:
    """Train."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(arguments.seed)
    starts = torch.randint(WORDS, (TEXTS, 1), generator=generator)
    texts = (starts + torch.arange(LENGTH)) % WORDS  # counting: something that can be learnt
    data = [{"input_ids": text, "labels": text} for text in texts]
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output_dir=output,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            seed=arguments.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            logging_steps=10,
        )
        torch.manual_seed(arguments.seed)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2)
        )
        preemptible = Preemptible(
            save_every_steps=arguments.save_every,
            directory=arguments.directory,
            background=arguments.background,
        )
        progress = Progress(arguments.print_every, arguments.seconds_per_step)
        trainer = Trainer(model, settings, train_dataset=data, callbacks=[progress, preemptible])
        trainer.train(resume_from_checkpoint=preemptible.checkpoint())

    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + tensor.numpy().tobytes())
    preemptible.complete(digest=weights.hexdigest())
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"final weights sha256={weights.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
