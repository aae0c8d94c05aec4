"""From the notice to the cordon: many trials at random phases of the poll, by long poll, and all nodes at once.

The nodes are those of :mod:`tests.kit.fleet`, on the real API server. The cordon counts when a watch tells of it, which
is later than the API server has it; guest agents, agents and the watch share one process, whose delays count, too.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from spot_training.api import names
from spot_training.cluster.client import Client
from spot_training.node.sources.eci import eci
from spot_training.node.sources.gcp import gcp
from tests.bench.report import Report
from tests.kit.fleet import LABEL, Member, add_taint, agents, members
from tests.kit.guest_agent.many import GuestAgent
from tests.unit.node import metadata
from tests.unit.node.google import QUIET, Server

TRIALS: Final = 1000
NODES: Final = 200
LONG_POLL_TRIALS: Final = 300
LONG_POLL_NODES: Final = 60
MASS: Final = 200
NOTICE_SECONDS: Final = 240.0
COLD_SECONDS: Final = 16.0
"""After so long the agent has no connection left from an earlier request: as when there was no notice for days."""

TAINTED_TOO: Final = 50
"""So many of all nodes are tainted by another controller at the same time."""

SEED: Final = 20_260_408

OTHERS: Final = {"key": "example.com/somebody-elses", "effect": "PreferNoSchedule"}
"""What another controller taints each node with while the agents do."""

TAINTS: Final = {LABEL, names.TAINT_RECLAIM, "node.kubernetes.io/unschedulable"}
"""What a node has in the end: its pool's, the agent's and the cordon's."""


@asynccontextmanager
async def guest_agents(chosen: Sequence[Member]) -> AsyncIterator[list[GuestAgent]]:
    """A guest agent for each of these nodes."""
    with tempfile.TemporaryDirectory() as directory:
        made = [GuestAgent(Path(directory, f"{member.name}.sock")) for member in chosen]
        async with AsyncExitStack() as stack:
            for guest in made:
                await stack.enter_async_context(guest.serving())
            yield made


async def polled(report: Report, trials: int = TRIALS) -> None:
    """Notices at random moments, with a question each second."""
    whole: list[float] = []
    after_answer: list[float] = []
    chance = random.Random(SEED)

    async def repeat(member: Member, guest: GuestAgent) -> None:
        # Spread over the length of a trial: nodes that began together would go on together.
        await asyncio.sleep(chance.uniform(0.0, COLD_SECONDS))
        while len(whole) < trials:
            await asyncio.sleep(chance.uniform(COLD_SECONDS, COLD_SECONDS + 4.0))
            began = guest.reclaim(NOTICE_SECONDS)
            await cordoned(member)
            assert member.cordoned_at is not None and guest.answered is not None
            whole.append(member.cordoned_at - began)
            after_answer.append(member.cordoned_at - guest.answered)
            guest.withdraw()
            await member.until("the end of the cordon", lambda: not member.cordoned)

    async with members("bench-polled", NODES) as (_, chosen), guest_agents(chosen) as guests:
        sources = [eci(str(guest.socket)) for guest in guests]
        async with agents(list(zip(chosen, sources, strict=True))):
            await asyncio.gather(*(repeat(*pair) for pair in zip(chosen, guests, strict=True)))
    report.trials("notice_to_cordon_p99_seconds", whole[:trials], "s", "<= 1.1", percentile=99)
    report.trials("answer_to_cordon_median_seconds", after_answer[:trials], "s", "<= 0.05")
    report.trials("answer_to_cordon_p99_seconds", after_answer[:trials], "s", percentile=99)


async def long_polled(report: Report, trials: int = LONG_POLL_TRIALS) -> None:
    """Google's long poll: the answer comes when the value changes."""
    samples: list[float] = []
    chance = random.Random(SEED)

    async def repeat(member: Member, server: Server) -> None:
        await asyncio.sleep(chance.uniform(0.0, COLD_SECONDS))
        while len(samples) < trials:
            await asyncio.sleep(chance.uniform(COLD_SECONDS, COLD_SECONDS + 4.0))
            async with asyncio.timeout(60):
                while server.waiting < 2:  # noqa: ASYNC110 - a counter of the server's, not an event
                    await asyncio.sleep(0.05)
            began = time.monotonic()
            await server.change("preempted", "TRUE")
            await cordoned(member)
            assert member.cordoned_at is not None
            samples.append(member.cordoned_at - began)
            await server.change("preempted", QUIET["preempted"])
            await member.until("the end of the cordon", lambda: not member.cordoned)

    async with members("bench-waiting", LONG_POLL_NODES) as (_, chosen), AsyncExitStack() as stack:
        servers = [Server() for _ in chosen]
        for server in servers:
            await stack.enter_async_context(metadata.service(serving=server))
        sources = [gcp(server.address) for server in servers]
        async with agents(list(zip(chosen, sources, strict=True))):
            await asyncio.gather(*(repeat(*pair) for pair in zip(chosen, servers, strict=True)))
    report.trials("longpoll_notice_to_cordon_seconds", samples[:trials], "s", "<= 0.1", percentile=99)


async def mass(report: Report, count: int = MASS) -> None:
    """Every node gets its notice at the same moment, while somebody else taints all of them as well."""
    async with members("bench-mass", count) as (admin, chosen), guest_agents(chosen) as guests:
        sources = [eci(str(guest.socket)) for guest in guests]
        async with agents(list(zip(chosen, sources, strict=True))):
            await asyncio.sleep(COLD_SECONDS)
            for member in chosen:
                member.codes.clear()
            began = [guest.reclaim(NOTICE_SECONDS) for guest in guests]
            await asyncio.gather(
                *(cordoned(member) for member in chosen),
                *(somebody_else(admin, member) for member in chosen[:TAINTED_TOO]),
            )
            took = [(member.cordoned_at or 0.0) - at for member, at in zip(chosen, began, strict=True)]
            wanted = {
                member.name: TAINTS | ({OTHERS["key"]} if n < TAINTED_TOO else set())
                for n, member in enumerate(chosen)
            }
            with suppress(TimeoutError):
                await asyncio.gather(*(complete(member, wanted[member.name]) for member in chosen))
            lost = [said for member in chosen for said in member.lost(wanted[member.name])]
            missing = [said for member in chosen for said in member.missing(wanted[member.name])]
            conflicts = sum(member.codes.get(("PATCH", "409"), 0) for member in chosen)
            given_up = sum(not member.marked for member in chosen)
    report.trials("mass_cordon_max_seconds", took, "s", "<= 3", percentile=100)
    report.value("lost_taints", float(len(lost)), "taints", "<= 0")
    report.value("missing_taints", float(len(missing)), "taints", "<= 0")
    report.notes += lost + missing
    report.value("mass_conflicts", float(conflicts), "answers 409")
    report.value("conflicts_given_up", float(given_up), "nodes", "<= 0")


async def cordoned(member: Member) -> None:
    """Return when the node is."""
    await member.until("the cordon", lambda: member.cordoned_at is not None)


async def somebody_else(admin: Client, member: Member) -> None:
    """Taint the node at a random moment of the second in which its agent does."""
    await asyncio.sleep(random.random())
    await add_taint(admin, member.name, OTHERS)


async def complete(member: Member, wanted: set[str]) -> None:
    """Return when the node has all of these taints."""
    await member.until("all taints", lambda: member.taints >= wanted)
