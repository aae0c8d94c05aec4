"""The process: it stands by, leads, and ends in order when it is told to."""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from spot_training.control.main import leave_alone
from spot_training.control.metrics import Metrics
from tests.unit.control.objects import raw_node
from tests.unit.control.server import Server, refusal, serving
from tests.unit.control.test_handlers import unnumbered

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.create_server(("", 0)) as held:
        return int(held.getsockname()[1])


class Process:
    """An operator as the container starts it."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.log = directory / f"log-{free_port()}"
        self.probe, metrics = free_port(), free_port()
        words = [
            *(sys.executable, "-m", "spot_training", "operator", "--lease=spot/leader"),
            *(f"--liveness=http://127.0.0.1:{self.probe}/healthz", f"--metrics-port={metrics}"),
        ]
        env = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
        env |= {
            "KUBECONFIG": str(server.kubeconfig(directory / "config")),
            "PYTHONPATH": str(ROOT / "operator"),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
        self.name = f"{socket.gethostname()}_{self.process.pid}"

    async def until_said(self, words: str) -> None:
        try:
            async with asyncio.timeout(60):
                while words not in self.log.read_text():  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{words!r}: not said; {self.log.read_text()}") from None

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[Server, list[Process]]]:
    begun: list[Process] = []
    async with serving() as server:
        server.put("nodes", unnumbered(raw_node("a1")))
        try:
            yield server, begun
        finally:
            for each in begun:
                each.process.kill()
                each.process.wait()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_go_it_gives_the_lease_back_and_ends_well(
    tmp_path: Path, signum: signal.Signals
) -> None:
    async with cluster(tmp_path) as (server, begun):
        begun.append(one := Process(server, tmp_path))
        await one.until_said("leads now")
        begun.append(two := Process(server, tmp_path))
        await two.until_said("stands by")
        probe = f"http://127.0.0.1:{two.probe}/healthz"
        assert (
            await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(probe, timeout=10))) is not None
        )
        assert server.get("leases", "leader", "spot")["spec"]["holderIdentity"] == one.name
        one.process.send_signal(signum)
        assert await one.ended() == 0, one.log.read_text()
        assert "has given the Lease back" in one.log.read_text()
        await two.until_said("leads now")
        assert server.get("leases", "leader", "spot")["spec"]["holderIdentity"] == two.name
        for said in (one.log.read_text(), two.log.read_text()):
            assert "Traceback" not in said and "Hung" not in said, said


async def test_one_whose_watches_have_ended_hands_over_and_ends_with_an_error(tmp_path: Path) -> None:
    """Kopf gives up where a list itself is answered with 410: a page of it came too late."""
    async with cluster(tmp_path) as (server, begun):
        begun.append(one := Process(server, tmp_path))
        await one.until_said("leads now")

        def expired(request: web.Request) -> web.StreamResponse | None:
            listing = request.path.endswith("/spotpools") and "watch" not in request.query
            return refusal(410, "Expired", "the continue token is too old") if listing else None

        server.fault = expired
        server.break_watches()
        server.put("nodes", server.get("nodes", "a1"))
        server.compact()
        assert await one.ended() == 1
        assert "the continue token is too old" in one.log.read_text()
        assert server.get("leases", "leader", "spot")["spec"]["holderIdentity"] == ""
        server.fault = lambda _: None
        begun.append(two := Process(server, tmp_path))
        await two.until_said("leads now")


async def test_without_the_crds_it_says_what_to_do(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, begun):
        del server.objects["spotpools"]
        begun.append(one := Process(server, tmp_path))
        assert await one.ended() == 1
        assert "install the CRDs (kubectl apply -f crds/)" in one.log.read_text()


async def test_the_tasks_are_counted() -> None:
    metrics = Metrics()
    metrics.follow(list, lambda: 0, lambda: True)
    before = metrics.registry.get_sample_value("spot_operator_tasks")
    assert before is not None
    task = asyncio.create_task(asyncio.Event().wait())
    assert metrics.registry.get_sample_value("spot_operator_tasks") == before + 1
    task.cancel()


def test_the_garbage_collector_passes_over_what_has_been_listed() -> None:
    listed = {"nodes": ["a1"]}
    try:
        leave_alone()
        assert not any(each is listed for each in gc.get_objects())
    finally:
        gc.unfreeze()
