"""The agent's HTTP server."""

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spot_training.node import health
from spot_training.node.health import HealthServer, Pulse
from spot_training.node.metrics import Metrics


async def ask(server: HealthServer, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_ready_means_that_the_source_answered_within_the_last_three_polls() -> None:
    pulse = Pulse(1.0)
    async with HealthServer(pulse, Metrics().registry, 0) as server:
        assert (await ask(server, "/readyz"))[0] == 503
        pulse.beat(None)
        assert (await ask(server, "/readyz"))[0] == 200
        pulse.beat("timeout")
        pulse.beat("timeout")
        assert (await ask(server, "/readyz"))[0] == 200
        pulse.beat("HTTP status 503")
        status, text = await ask(server, "/readyz")
        assert status == 503 and "HTTP status 503" in text
        # A source that does not answer is no reason to kill the agent.
        assert (await ask(server, "/livez"))[0] == 200
        pulse.beat(None)
        assert (await ask(server, "/readyz"))[0] == 200


async def test_live_means_that_the_poll_loop_comes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(0.05)
    monkeypatch.setattr(health, "STUCK_SECONDS", 0.0)
    async with HealthServer(pulse, Metrics().registry, 0) as server:
        async with asyncio.timeout(10):
            while (await ask(server, "/livez"))[0] == 200:  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(0.01)
        pulse.beat(None)
        assert pulse.alive


async def test_metrics_are_prometheus_text_with_bounded_labels() -> None:
    metrics = Metrics()
    metrics.polls.labels("eci", "unknown").inc()
    metrics.notices.labels("reclaim", "eci").inc()
    async with HealthServer(Pulse(1.0), metrics.registry, 0) as server:
        status, text = await ask(server, "/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "spot_agent_notices",
        "spot_agent_notice_to_cordon_seconds",
        "spot_agent_polls",
        "spot_agent_evictions",
        "spot_agent_pods_left",
        "spot_agent_deadline_margin_seconds",
        "spot_agent_seconds_since_good_poll",
        "process_resident_memory_bytes",
    } <= families.keys()
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert labels <= {"kind", "source", "result", "le"}
