import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.train.programs import Surroundings


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """A checkpoint directory and a termination log; signal handlers and hooks are given back after."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("SPOT_RESUME_DIR", "SPOT_GRACE_SECONDS", "SPOT_CHECKPOINT_INTERVAL_SECONDS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    log = tmp_path / "termination-log"
    log.touch()
    yield Surroundings(tmp_path / "checkpoints", log, monkeypatch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.collect()
