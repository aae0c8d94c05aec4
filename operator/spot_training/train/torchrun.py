"""torchrun, with all of the grace for its workers: it takes torchrun's arguments, and does what that does.

    python -m spot_training.train -m spot_training.train.torchrun [torchrun's arguments] script.py arguments ...

torchrun passes SIGTERM on to its workers and kills them 30 seconds after that (``timeout`` of `PContext.close`, which
no argument of its own sets): a save that takes longer is lost, however long the pod's grace is. Here the workers have
until the end of ``SPOT_GRACE_SECONDS``. The launcher in front of it makes 143 of the 1 with which torchrun ends then.
"""

from __future__ import annotations

from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext

from spot_training.train.environment import Settings


def wait_for_workers(seconds: float) -> None:
    """Have this process' torchrun agent wait `seconds`, if not more, between SIGTERM and SIGKILL of its workers."""
    close = PContext.close

    def close_in_time(context: Any, death_sig: Any = None, timeout: float = 30) -> None:
        close(context, death_sig, max(timeout, seconds))

    PContext.close = close_in_time


def main() -> None:
    """Run torchrun."""
    grace = Settings.read().grace
    if grace:
        wait_for_workers(grace)
    run.main()


if __name__ == "__main__":
    main()
