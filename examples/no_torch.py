"""A program without torch: it estimates pi by throwing darts, and can be interrupted at any time.

    python examples/no_torch.py --directory /tmp/pi

Its state is a dict of counts, given to the library as a pair of functions. Python's random numbers are saved
without being named, so an interrupted run ends with exactly the estimate of an uninterrupted one.
"""

import argparse
import random
import time

from spot_training.train import Training

parser = argparse.ArgumentParser(description="Estimates pi, preemptibly.")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument(
    "--seconds-per-step", type=float, default=0.0, help="slow the program down, to interrupt it"
)
parser.add_argument("--directory", help="where to save outside the operator, which names its own")
arguments = parser.parse_args()

random.seed(20261121)
darts = {"thrown": 0, "inside": 0}
training = Training(
    {"darts": (lambda: darts, darts.update)},
    total_steps=arguments.steps,
    save_every_steps=20,
    directory=arguments.directory,
)
for _ in training.steps():
    for _ in range(1000):
        darts["thrown"] += 1
        darts["inside"] += random.random() ** 2 + random.random() ** 2 < 1  # noqa: S311 - no secret
    time.sleep(arguments.seconds_per_step)
    training.extras["pi"] = 4 * darts["inside"] / darts["thrown"]
print(f"pi is about {training.extras['pi']:.6f} after {darts['thrown']} darts")
