"""What the outside learns: log lines for people, and the termination message for the operator.

The termination message is a file that kubelet reads when the container has ended, in whatever way. It is
rewritten after every save, so that what it says survives a SIGKILL. The file is a bind mount and cannot be
replaced by a rename: it is overwritten by one `write` of one line of JSON, padded with spaces over what was
there, so that there is no instant at which it is empty.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 4096
"""What Kubernetes keeps of a container's termination message."""
_MAX_MESSAGE: Final = 1000
_MAX_PASSED_OVER: Final = 5

RUNNING: Final = "Running"
PREEMPTED: Final = "Preempted"
COMPLETED: Final = "Completed"
FAILED: Final = "Failed"
PEER_LOST: Final = "PeerLost"
VOLUME_FULL: Final = "VolumeFull"
"""The program has ended because there was no room for a checkpoint; as `saveTrouble`: the last save failed for that."""
FAILURES: Final = (FAILED, VOLUME_FULL)

log: Final = logging.getLogger("spot_training.train")
"""Each record bears the numbers of its line as attributes (`event`, `step`, `seconds`, ...) for JSON formatters."""


def show_log() -> None:
    """Send our lines to standard error where the program has configured no logging of its own."""
    if log.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("spot-training: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds, of seconds since the epoch: ``2026-04-08T05:00:00.000Z``."""
    whole = math.floor(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


def encode(record: dict[str, Any]) -> bytes:
    """A record as one line of JSON of at most 4,096 bytes; what is longest and least needed is left out first.

    Strict JSON: a loss that has become NaN is written as null.
    """
    record = _finite(record)
    if isinstance(message := record.get("message"), str) and len(message) > _MAX_MESSAGE:
        record["message"] = message[: _MAX_MESSAGE - 3] + "..."
    if isinstance(passed_over := record.get("passedOver"), list):
        record["passedOver"] = passed_over[:_MAX_PASSED_OVER]
    for optional in ("", "extras", "passedOver", "message"):
        record.pop(optional, None)
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) <= MAX_BYTES:
            return line
    raise ValueError(f"a report of {len(line)} bytes without anything optional")


class TerminationLog:
    """The termination message's file; where there is none (outside Kubernetes), nothing is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        """Replace the message. Failing to is logged: it must never end a training program."""
        line = encode(record)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("cannot write the termination message: %s", error, extra={"event": "report-failed"})
            return
        try:
            before = min(os.fstat(descriptor).st_size, MAX_BYTES)
            # The line break last, so that padding and line are one line.
            os.pwrite(descriptor, line[:-1].ljust(before - 1) + b"\n", 0)
            if os.fstat(descriptor).st_size > MAX_BYTES:
                os.ftruncate(descriptor, MAX_BYTES)
        except OSError as error:
            log.warning("cannot write the termination message: %s", error, extra={"event": "report-failed"})
        finally:
            os.close(descriptor)

    def read(self) -> dict[str, Any] | None:
        """The message as it is now; None where it is none of ours."""
        try:
            record = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and "reason" in record else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
