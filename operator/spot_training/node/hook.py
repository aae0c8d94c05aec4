"""The user's own hooks at a notice: a command in the agent's container, a POST to a URL; each bounded in time."""

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from spot_training.node.logs import fields
from spot_training.node.message import Occasion
from spot_training.node.metrics import Metrics
from spot_training.node.post import post

log = logging.getLogger(__name__)

TAIL_BYTES: Final = 1000
"""So much of a command's last output is logged; the rest is read and dropped, so that it does not block."""

AT_NOTICE: Final = frozenset({Occasion.NOTICE, Occasion.WARNING})


class UrlHook:
    """Posts all facts as one JSON object to ``url``, once."""

    occasions = AT_NOTICE

    def __init__(self, url: str, seconds: float, metrics: Metrics) -> None:
        self._url, self._seconds, self._metrics = url, seconds, metrics

    async def send(self, given: Mapping[str, str]) -> None:
        """Call the hook; it is not called again if that fails."""
        posted = await post(self._url, dict(given), self._seconds)
        _tell(self._metrics, "url", "done" if posted.accepted else "failed", given, posted.why, "")


class CommandHook:
    """Runs a command with the facts in its environment: ``SPOT_NODE``, ``SPOT_DEADLINE`` …

    Beside them it gets only ``PATH``: the agent's own environment holds the webhook's URL. It is the leader of a
    process group, and whatever of that still runs when the time is over is killed.
    """

    occasions = AT_NOTICE

    def __init__(self, command: Sequence[str], seconds: float, metrics: Metrics) -> None:
        self._command, self._seconds, self._metrics = tuple(command), seconds, metrics

    async def send(self, given: Mapping[str, str]) -> None:
        """Run the command once."""
        result, why, output = await self._run(given)
        _tell(self._metrics, "command", result, given, why, output)

    async def _run(self, given: Mapping[str, str]) -> tuple[str, str, str]:
        """What came of it, why, and the end of its output."""
        environment = {f"SPOT_{name.upper()}": value for name, value in given.items()}
        environment["PATH"] = os.environ.get("PATH", os.defpath)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return "failed", str(error), ""
        output = bytearray()
        ended = False
        try:
            async with asyncio.timeout(self._seconds):
                await _read(process, output)
                code = await process.wait()
                ended = True
        except TimeoutError:
            return "timeout", f"not over within {self._seconds:g} s", output.decode(errors="replace")
        finally:
            if not ended:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        result = "failed" if code else "done"
        return result, f"exit code {code}", output.decode(errors="replace")


async def _read(process: Process, output: bytearray) -> None:
    """Read until all who could write have closed the pipe; leaves the end in ``output``."""
    if process.stdout is None:
        raise RuntimeError("a command without a pipe")
    while chunk := await process.stdout.read(4096):
        output += chunk
        del output[:-TAIL_BYTES]


def _tell(metrics: Metrics, way: str, result: str, given: Mapping[str, str], why: str, output: str) -> None:
    metrics.hooks.labels(way, result).inc()
    log.log(
        logging.INFO if result == "done" else logging.WARNING,
        "hook %s",
        result,
        extra=fields(notice=given["notice"], occasion=given["occasion"], way=way, why=why, output=output),
    )
