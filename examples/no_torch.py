"""A program without torch: it estimates pi by throwing darts, and can be interrupted at any time.

    python examples/no_torch.py --directory /tmp/pi

Its state is a dict of counts, given to the library as a pair of functions, and a file in a format of its own: how
often each field of the board was hit. Python's random numbers are saved without being named, so an interrupted run ends
with exactly the estimate of an uninterrupted one.
"""

import argparse
import random
import time
from array import array
from pathlib import Path

from spot_training.train import Files, Training

FIELDS = 32  # on each side of the board

parser = argparse.ArgumentParser(description="Estimates pi, preemptibly.")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument(
    "--seconds-per-step", type=float, default=0.0, help="slow the program down, to interrupt it"
)
parser.add_argument("--directory", help="where to save outside the operator, which names its own")
arguments = parser.parse_args()

random.seed(20261121)
darts = {"thrown": 0, "inside": 0}
board = array("Q", [0] * FIELDS**2)


def save_board(directory: Path) -> None:
    """Write what no JSON holds; the library makes the directory, and takes what is in it."""
    (directory / "board.bin").write_bytes(board.tobytes())


def load_board(directory: Path) -> None:
    """Read it back."""
    board[:] = array("Q", (directory / "board.bin").read_bytes())


training = Training(
    {"darts": (lambda: darts, darts.update), "board": Files(save_board, load_board)},
    total_steps=arguments.steps,
    save_every_steps=20,
    directory=arguments.directory,
)
for _ in training.steps():
    for _ in range(1000):
        x, y = random.random(), random.random()  # noqa: S311 - no secret
        darts["thrown"] += 1
        darts["inside"] += x**2 + y**2 < 1
        board[int(y * FIELDS) * FIELDS + int(x * FIELDS)] += 1
    time.sleep(arguments.seconds_per_step)
    training.extras["pi"] = 4 * darts["inside"] / darts["thrown"]
print(
    f"pi is about {training.extras['pi']:.6f} after {darts['thrown']} darts, at most {max(board)} in one field"
)
