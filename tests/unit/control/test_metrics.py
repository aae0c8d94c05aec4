"""The operator's metrics as Prometheus reads them, and what each request of the client is counted as."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from spot_training.api.status import Phase, SpotTrainingJobStatus
from spot_training.cluster.client import ApiError, Client, Connection
from spot_training.control.main import main
from spot_training.control.metrics import Metrics, serving
from tests.unit.control.build import NOW, node, pool
from tests.unit.control.test_observations import TABLE
from tests.unit.control.test_pools import look, taken

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(port: int) -> Samples:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://localhost:{port}/metrics") as response,
    ):
        assert response.status == 200
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float:
    found = samples.get((f"spot_operator_{name}", frozenset(labels.items())))
    assert found is not None, sorted(map(str, samples))
    return found


@pytest.fixture
async def server() -> AsyncIterator[tuple[Metrics, int]]:
    metrics = Metrics()
    async with serving(metrics.registry, 0) as port:
        yield metrics, port


async def test_what_was_written_is_read_from_the_port(server: tuple[Metrics, int]) -> None:
    metrics, port = server
    read = SpotTrainingJobStatus.model_validate
    for before, after, _ in TABLE.values():
        metrics.note_write(read(before), read(after))
    seen = await scrape(port)
    assert sample(seen, "disruptions_total", reason="Reclaimed", pool="a") == 2
    assert sample(seen, "disruptions_total", reason="Other", pool="a") == 2
    assert sample(seen, "failures_total", reason="OOMKilled", pool="a") == 1
    assert sample(seen, "failures_total", reason="Other", pool="a") == 1
    assert (sample(seen, "attempts_total", pool="a"), sample(seen, "attempts_total", pool="b")) == (4, 3)
    assert sample(seen, "on_demand_fallbacks_total", pool="b") == 1
    assert sample(seen, "unstarted_total", reason="ProvisionTimeout", pool="a") == 1
    assert sample(seen, "unstarted_total", reason="Other", pool="a") == 1
    assert sample(seen, "recovery_seconds_count", pool="a") == 3
    assert sample(seen, "recovery_seconds_sum", pool="a") == 84
    assert sample(seen, "recovery_seconds_bucket", pool="a", le="60.0") == 3
    labels = {name for _, pairs in seen for name, _ in pairs}
    assert labels == {"reason", "pool", "le"}, "no label tells a job, a namespace or a node"


async def test_what_stands_is_asked_at_each_scrape(server: tuple[Metrics, int]) -> None:
    metrics, port = server
    phases: list[Phase] = ["Running", "Running", "Pending"]
    waiting: list[str] = ["one"]
    leading = [False]
    metrics.follow(lambda: phases, lambda: len(waiting), lambda: leading[0])
    seen = await scrape(port)
    assert (sample(seen, "leader"), sample(seen, "jobs", phase="Running")) == (0, 0), (
        "a standby tells no jobs"
    )
    leading[0] = True
    seen = await scrape(port)
    assert sample(seen, "leader") == 1
    assert sample(seen, "tasks") >= 1
    assert sample(seen, "jobs", phase="Running") == 2
    assert sample(seen, "jobs", phase="Failed") == 0
    assert sample(seen, "queue_depth") == 1
    phases[:], waiting[:] = ["Failed"], []
    seen = await scrape(port)
    assert (sample(seen, "jobs", phase="Running"), sample(seen, "jobs", phase="Failed")) == (0, 1)
    assert sample(seen, "queue_depth") == 0


async def test_pools_are_told_by_the_leader(server: tuple[Metrics, int]) -> None:
    metrics, port = server
    leading = [True]
    limited = pool("a", maxInterruptionsPerHour=1)
    made = look(limited, node("a1"), node("a2", ready=False), taken("a3"), lost={"one": NOW})
    metrics.follow(lambda: (), lambda: 0, lambda: leading[0], lambda: [made, look(pool("b"))])
    seen = await scrape(port)
    names = ("nodes", "ready_nodes", "reclaiming_nodes", "gpus", "free_gpus", "breaker_open")
    assert [sample(seen, f"pool_{name}", pool="a") for name in names] == [3, 2, 1, 4, 4, 1]
    rate = made.status.interruptions.rate_per_node_hour
    assert sample(seen, "pool_interruptions_per_node_hour", pool="a") == float(rate or 0) > 0
    assert sample(seen, "pool_nodes", pool="b") == 0
    assert ("spot_operator_pool_breaker_open", frozenset({("pool", "b")})) not in seen
    leading[0] = False
    assert not [name for name, _ in await scrape(port) if name.startswith("spot_operator_pool_")]


async def test_the_docs_name_every_metric() -> None:
    metrics = Metrics()
    metrics.follow(lambda: (), lambda: 0, lambda: True, lambda: ())
    docs = "".join(page.read_text() for page in (Path(__file__).parents[3] / "docs").glob("*.md"))
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
        if not family.name.startswith("process_")
    }
    assert len(told) > 10, told
    assert not (missing := sorted(name for name in told if name not in docs)), f"in no page: {missing}"


async def test_a_port_that_is_taken_is_an_error_at_the_start() -> None:
    with socket.create_server(("", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with serving(Metrics().registry, taken.getsockname()[1]):
            raise AssertionError("it is served all the same")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", ""])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--metrics-port={port}"])
    assert "--metrics-port" in (said := capsys.readouterr().err), said
    assert f"{port!r} is no port: give a number from 1 to 65535" in said


@pytest.mark.parametrize("lease", ["", "leader", "spot/", "/leader", "spot/a/b", "Spot/leader"])
def test_a_lease_that_is_none_is_refused(lease: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--lease={lease}"])
    assert "--lease" in (said := capsys.readouterr().err), said
    assert f"{lease!r} names no Lease: give its namespace and name" in said


async def test_requests_are_counted_by_method_and_code() -> None:
    metrics = Metrics()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/broken":
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"{")
            assert request.transport is not None
            request.transport.abort()
            return response
        if request.path == "/silent":
            await asyncio.Event().wait()
        code = 409 if request.path == "/conflict" else 200
        return web.json_response({"message": "said"}, status=code)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as api:
        connection = Connection(str(api.make_url("")), None, token="t")
        async with Client(connection, timeout=5, observe=metrics.note_request) as client:
            await client.get("/pods")
            await client.get("/pods")
            await client.patch("/pods", {})
            with pytest.raises(ApiError):
                await client.create("/conflict", {})
            with pytest.raises(aiohttp.ClientError):
                await client.get("/broken")
        async with Client(connection, timeout=0.05, observe=metrics.note_request) as client:
            with pytest.raises(TimeoutError):
                await client.delete("/silent")
    async with serving(metrics.registry, 0) as port:
        seen = await scrape(port)
    counted = {
        tuple(value for _, value in sorted(labels, reverse=True)): count
        for (name, labels), count in seen.items()
        if name == "spot_operator_api_requests_total"
    }
    assert counted == {
        ("GET", "200"): 2,
        ("PATCH", "200"): 1,
        ("POST", "409"): 1,
        ("GET", "error"): 1,
        ("DELETE", "error"): 1,
    }
