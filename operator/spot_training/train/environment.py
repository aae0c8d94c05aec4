"""What the operator tells the program: the environment variables of the training container, read once.

Everything also works without them, for a run by hand: only a directory must then be named in the program.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_JOB: Final = "SPOT_JOB"
ENV_FENCE: Final = "SPOT_FENCE"
ENV_ATTEMPT: Final = "SPOT_ATTEMPT"
ENV_CHECKPOINT_DIR: Final = "SPOT_CHECKPOINT_DIR"
ENV_RESUME_DIR: Final = "SPOT_RESUME_DIR"
ENV_INTERVAL: Final = "SPOT_CHECKPOINT_INTERVAL_SECONDS"
ENV_GRACE: Final = "SPOT_GRACE_SECONDS"

# Where the operator sends nothing else: PyTorch's own names, and the path at which kubelet reads.
ENV_TERMINATION_LOG: Final = "SPOT_TERMINATION_LOG"
ENV_WORLD_SIZE: Final = "WORLD_SIZE"
ENV_LOCAL_RANK: Final = "LOCAL_RANK"
TERMINATION_LOG: Final = "/dev/termination-log"


@dataclass(frozen=True)
class Settings:
    """The environment of one run; what is None was not told. All durations are seconds."""

    checkpoint_dir: Path | None
    resume_dir: Path | None
    fence: str | None
    attempt: int | None
    interval: float | None
    grace: float | None
    termination_log: Path
    world_size: int
    local_rank: int

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the variables. Raises ValueError that names a variable that makes no sense."""
        env = os.environ if environ is None else environ
        checkpoint_dir, resume_dir = env.get(ENV_CHECKPOINT_DIR), env.get(ENV_RESUME_DIR)
        return cls(
            checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir else None,
            resume_dir=Path(resume_dir) if resume_dir else None,
            fence=env.get(ENV_FENCE) or None,
            attempt=_whole(env, ENV_ATTEMPT),
            interval=_seconds(env, ENV_INTERVAL),
            grace=_seconds(env, ENV_GRACE),
            termination_log=Path(env.get(ENV_TERMINATION_LOG) or TERMINATION_LOG),
            world_size=_whole(env, ENV_WORLD_SIZE) or 1,
            local_rank=_whole(env, ENV_LOCAL_RANK) or 0,
        )

    def directory(self, argument: str | os.PathLike[str] | None) -> Path:
        """Where to save: what the operator mounted, else what the program says. Raises ValueError for neither."""
        if self.checkpoint_dir:
            return self.checkpoint_dir
        if argument is None:
            raise ValueError(
                f"no checkpoint directory: give Training(..., directory=...) or set {ENV_CHECKPOINT_DIR}"
            )
        return Path(argument)


def _seconds(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={text!r} is no number of seconds above 0: correct it, or remove it")
    return value


def _whole(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} is no whole number: correct it, or remove it")
    return int(text)
