"""An operator run by hand beside the cluster, so that what it costs can be read from its process."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.bench.report import ROOT
from tests.kit import places
from tests.kit.process import bound

METRICS_PORT: Final = 18081
TICKS: Final = os.sysconf("SC_CLK_TCK")
WRITING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    pid: int

    def resident_mib(self) -> float:
        """Memory that it holds now, in MiB."""
        return self._memory("VmRSS")

    def peak_mib(self) -> float:
        """The most memory that it has held so far, in MiB."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> float:
        status = (Path("/proc") / str(self.pid) / "status").read_text()
        found = re.search(rf"{field}:\s+([0-9]+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""
        fields = (Path("/proc") / str(self.pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    async def metric(self, name: str, labels: str = "") -> float:
        """The sum of a metric's samples whose labels contain ``labels``; 0 where there is none."""
        return sum(
            value for line, value in (await self._samples()) if line.startswith(name) and labels in line
        )

    async def writes(self) -> float:
        """Requests so far that change something; a dry run is among them, for it costs the same."""
        return sum(
            value
            for line, value in await self._samples()
            if line.startswith("spot_operator_api_requests_total")
            and any(f'verb="{verb}"' in line for verb in WRITING)
        )

    async def _samples(self) -> list[tuple[str, float]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{METRICS_PORT}/metrics") as answer,
        ):
            lines = (await answer.text()).splitlines()
        return [(line, float(line.rsplit(" ", 1)[1])) for line in lines if line and not line.startswith("#")]


@asynccontextmanager
async def operator_process() -> AsyncIterator[OperatorProcess]:
    """Start an operator against the test cluster; it is ended with the context."""
    log = places.LOGS / "bench-operator.log"
    words = [sys.executable, "-m", "spot_training", "operator", "--log-level", "warning"]
    words += ["--liveness", "http://127.0.0.1:18080/healthz", "--metrics-port", str(METRICS_PORT)]
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *bound(words),
            cwd=ROOT,
            env={**os.environ, "KUBECONFIG": str(places.KUBECONFIG), "PYTHONPATH": str(ROOT / "operator")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        yield OperatorProcess(process.pid)
        if process.returncode is not None:
            raise RuntimeError(f"the operator ended with {process.returncode}; see {log}")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()
