"""An agent at work on one node of the API server in :mod:`tests.unit.node.api`, and waiting for what it does."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from spot_training.cluster.client import Client
from spot_training.node.agent import Agent
from spot_training.node.announce import Outlet
from spot_training.node.message import Occasion
from spot_training.node.metrics import Metrics
from spot_training.node.notice import Answer, Limits, Nothing, Notice, Notices
from spot_training.node.policy import Policy
from spot_training.node.situation import Settings
from spot_training.node.sources import Source
from tests.unit.node.api import Api
from tests.unit.node.waiting import until

NODE = "spot-1"
MARGIN = 5
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
TAINT = {"key": "spot.training/reclaim", "value": "reclaim", "effect": "NoSchedule"}
POOL = {"key": "spot.training/capacity-type", "value": "spot", "effect": "NoSchedule"}


class Script:
    """A source whose answer the test sets."""

    name = "eci"
    limits = Limits(minimum=60, horizon=300)

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer: Answer = answer or Nothing()
        self.asked = 0

    async def ask(self) -> Answer:
        self.asked += 1
        return self.answer


class Ear:
    """An outlet that keeps what it is told."""

    occasions = frozenset(Occasion)

    def __init__(self) -> None:
        self.heard: list[dict[str, str]] = []

    async def send(self, given: Mapping[str, str]) -> None:
        self.heard.append(dict(given))

    def occasion(self) -> list[str]:
        """Why it was told, in order."""
        return [one["occasion"] for one in self.heard]


def due(seconds: float, now: float | None = None) -> Notices:
    """A notice for a moment in so many seconds."""
    at = math.ceil((time.time() if now is None else now) + seconds)
    return Notices((Notice(f"eci-{at}", "reclaim", "eci", float(at)),))


@asynccontextmanager
async def working(
    api: Api,
    source: Source,
    *,
    drain: bool = True,
    dry_run: bool = False,
    pod: tuple[str, str] | None = None,
    policy: Policy | None = None,
    outlets: Sequence[Outlet] = (),
    poll_seconds: float = 0.01,
    wait_for_volumes: bool = True,
) -> AsyncIterator[Agent]:
    """An agent at work, until the end of the block, where it is killed."""
    settings = Settings(NODE, poll_seconds, drain, dry_run, pod, policy or Policy(), wait_for_volumes, "test")
    async with Client(api.connection, timeout=5) as client:
        agent = Agent(settings, client, source, Metrics(), outlets)
        task = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def drained(api: Api) -> None:
    await until(
        "an empty node that says so",
        lambda: not api.leaving() and api.conditions(NODE).get("Drained") == "True",
        lambda: (api.leaving(), api.nodes, api.told, api.requests[-20:]),
    )


async def marked(api: Api) -> None:
    await until(
        "the marks", lambda: TAINT in api.nodes[NODE]["spec"]["taints"], lambda: (api.nodes, api.requests)
    )


async def unmarked(api: Api) -> None:
    await until(
        "a node as it was before",
        lambda: (
            api.nodes[NODE]["spec"] == {"taints": [POOL]}
            and not api.nodes[NODE]["metadata"].get("annotations")
            and "True" not in api.conditions(NODE).values()
        ),
        lambda: (api.nodes, api.requests[-20:]),
    )


def workload(api: Api) -> None:
    """One of each: a training pod, two ordinary ones, what stays, what has ended, a neighbour's."""
    api.add_pod("train", node=NODE, job=True, terminationGracePeriodSeconds=600)
    api.add_pod("web", node=NODE)
    api.add_pod("api", node=NODE, priority=1000)
    api.add_pod("logs", node=NODE, owner="DaemonSet")
    api.add_pod("elsewhere", node="spot-2", owner="DaemonSet")
    api.add_pod("finished", node="spot-2", owner="DaemonSet", phase="Succeeded", job=True)
