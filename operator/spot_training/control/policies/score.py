"""What an hour of useful training costs in a pool: the lower the better.

score = price · (1 + λ · (τ/2 + R)) · (1 + 0.02 · spare)

- price: of a GPU and hour, the node's price over the GPUs of the pool's largest node;
- λ: interruptions per node and hour, decayed (:mod:`.interruptions`). It is taken for the whole gang: the nodes of
  one pool are reclaimed together, so that multiplying it by the number of nodes would overstate the hazard;
- τ/2 + R: hours lost by an interruption: half the time between two checkpoints, and what a restart takes;
- spare: the share of the pool's free places that would be left: of pools that cost alike the fuller one, so that
  room for large gangs stays whole.
"""

from typing import Final

RESTART_HOURS: Final = 180 / 3600
FIT_WEIGHT: Final = 0.02


def score(price_per_gpu: float, rate: float, interval: int, spare: float) -> float:
    """The score of a pool; ``rate`` per node and hour, ``interval`` in seconds, ``spare`` from 0 to 1."""
    lost = interval / 3600 / 2 + RESTART_HOURS
    return price_per_gpu * (1 + rate * lost) * (1 + FIT_WEIGHT * spare)
