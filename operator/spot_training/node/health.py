"""The agent's HTTP server: is it alive, does its source answer, and the metrics.

Ready is the agent's heartbeat to the operator: ready means that the source answered within the last three polls.
"""

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

SILENT_POLLS: Final = 3
STUCK_SECONDS: Final = 30.0
"""A poll is bounded to a few seconds: a loop that has not come round for so long is stuck."""


@dataclass
class Pulse:
    """What the poll loop tells of itself."""

    poll_seconds: float
    unknown_in_a_row: int = SILENT_POLLS
    reason: str = "the source has not been asked yet"
    _beat: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def beat(self, unknown: str | None) -> None:
        """The loop came round; ``unknown`` says why the source gave no answer, None where it did."""
        self._beat = asyncio.get_running_loop().time()
        self.unknown_in_a_row = 0 if unknown is None else self.unknown_in_a_row + 1
        self.reason = unknown or ""

    @property
    def alive(self) -> bool:
        """Whether the loop still comes round."""
        silent = asyncio.get_running_loop().time() - self._beat
        return silent < STUCK_SECONDS + self.poll_seconds

    @property
    def ready(self) -> bool:
        """Whether the source answered within the last three polls."""
        return self.unknown_in_a_row < SILENT_POLLS


class HealthServer:
    """``/livez``, ``/readyz`` and ``/metrics`` on one port; 0 takes a free one, told by ``port``."""

    def __init__(self, pulse: Pulse, registry: CollectorRegistry, port: int) -> None:
        self._pulse, self._registry, self.port = pulse, registry, port
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> "HealthServer":
        await self._runner.setup()
        # All addresses of the pod, of either family: kubelet and Prometheus come from outside it.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listening = socket.create_server(("", self.port), family=family, dualstack_ipv6=both)
        await web.SockSite(self._runner, listening).start()
        self.port = listening.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        if self._pulse.alive:
            return web.Response(text="ok\n")
        return web.Response(status=500, text="the poll loop has not come round\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._pulse.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"the source does not answer: {self._pulse.reason}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
