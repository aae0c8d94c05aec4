"""The API server that agents are tested against."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.node.api import Api, running
from tests.unit.node.working import NODE, POOL


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running(Api()) as cluster:
        cluster.add_node(NODE, taints=[POOL])
        yield cluster
