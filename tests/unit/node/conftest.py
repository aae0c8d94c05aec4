"""The API server that agents are tested against, and time that passes as fast as they can use it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

import pytest

from spot_training.node import announce
from tests.unit.node.api import Api, running
from tests.unit.node.virtual import VirtualLoop
from tests.unit.node.working import NODE, POOL


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running(Api()) as cluster:
        cluster.add_node(NODE, taints=[POOL])
        yield cluster


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One node's Events need not be spread."""
    monkeypatch.setattr(announce, "SPREAD_SECONDS", 0.0)


Scenario = Callable[[Api], Coroutine[None, None, None]]


@pytest.fixture
def in_virtual_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Scenario], None]]:
    """Runs a scenario, which is given such an API server, in virtual time."""

    async def staged(scenario: Scenario) -> None:
        async with running(Api()) as cluster:
            cluster.add_node(NODE, taints=[POOL])
            await scenario(cluster)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        began, loop = time.time(), runner.get_loop()
        monkeypatch.setattr(time, "time", lambda: began + loop.time())
        yield lambda scenario: runner.run(staged(scenario))
