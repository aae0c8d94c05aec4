"""Many agents at once on the real API server, each with the token of its own node: what a mass reclamation is like."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from spot_training.api import names
from spot_training.cluster.client import Client
from spot_training.node.sources.eci import eci
from tests.kit.fleet import LABEL, Member, add_taint, agents, members
from tests.kit.guest_agent.many import GuestAgent

COUNT = 20
OTHERS = {"key": "example.com/somebody-elses", "effect": "PreferNoSchedule"}
CORDON = "node.kubernetes.io/unschedulable"

Fleet = tuple[Client, list[Member], list[GuestAgent]]


@pytest.fixture
async def fleet(unique: str) -> AsyncIterator[Fleet]:
    """Nodes with agents that ask five times a second, and their guest agents."""
    async with members(unique, COUNT) as (admin, chosen), AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        guests = [GuestAgent(directory / member.name) for member in chosen]
        for guest in guests:
            await stack.enter_async_context(guest.serving())
        sources = [eci(str(guest.socket)) for guest in guests]
        async with agents(list(zip(chosen, sources, strict=True)), poll_seconds=0.2):
            yield admin, chosen, guests


async def all_taints(member: Member) -> None:
    wanted = {LABEL, names.TAINT_RECLAIM, CORDON, OTHERS["key"]}
    await member.until("all taints", lambda: member.cordoned and member.taints >= wanted)
    assert not member.lost(wanted), member.lost(wanted)


async def as_before(member: Member) -> None:
    await member.until(
        "the end of the marks", lambda: not member.cordoned and names.TAINT_RECLAIM not in member.taints
    )
    assert {LABEL, OTHERS["key"]} <= member.taints
    annotations = member.node["metadata"].get("annotations", {})
    assert not [key for key in annotations if key.startswith("spot.training/")]


async def test_all_nodes_are_cordoned_at_once_and_no_taint_is_lost(fleet: Fleet) -> None:
    admin, chosen, guests = fleet
    for guest in guests:
        guest.reclaim(120)
    await asyncio.gather(*(add_taint(admin, member.name, OTHERS) for member in chosen))
    for member in chosen:
        await all_taints(member)
    for guest in guests:
        guest.withdraw()
    for member in chosen:
        await as_before(member)
        # Nothing was asked for that an agent may not have.
        assert not [key for key in member.codes if key[1] in ("401", "403", "422")], member.codes
