"""One dry run for jobs whose pods are alike, and each its own words where they are refused."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from spot_training.control.acceptance import ALIKE_SECONDS, MAX_KNOWN, Acceptance
from spot_training.control.read import read_job
from spot_training.control.world import Accepted, Job, Pool, Refusal
from tests.unit.control.objects import raw_job

BASE = read_job(raw_job())


def job(name: str, **changes: Any) -> Job:
    """A job of its own name, UID, age and claim."""
    checkpoint = BASE.spec.checkpoint.model_copy(update={"claim_name": f"claim-{name}"})
    spec = BASE.spec.model_copy(update={"checkpoint": checkpoint, **changes})
    return replace(BASE, name=name, uid=f"uid-{name}", created=float(len(name)), spec=spec)


class Server:
    """Answers dry runs when it is let, and counts them."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.accepts = accepts
        self.acceptance = Acceptance(self._dry_run, lambda: self.now)

    async def _dry_run(self, job: Job, pool: Pool | None) -> Accepted | Refusal:
        self.asked.append(job.name)
        await self.open.wait()
        if self.accepts:
            return Accepted(7)
        return Refusal(f"pods of {job.name} are refused", temporary=True)


async def test_jobs_of_one_template_are_asked_about_once_also_at_the_same_time() -> None:
    server = Server()
    server.open.clear()
    waiting = [asyncio.ensure_future(server.acceptance.of(job(name), None)) for name in ("a", "bb", "ccc")]
    await asyncio.sleep(0)
    server.open.set()
    assert await asyncio.gather(*waiting) == [Accepted(7)] * 3
    assert await server.acceptance.of(job("dddd"), None) == Accepted(7)
    assert server.asked == ["a"]


async def test_what_differs_in_more_than_a_name_is_asked_about_itself() -> None:
    server = Server()
    await server.acceptance.of(job("a"), None)
    await server.acceptance.of(replace(job("a"), namespace="other"), None)
    await server.acceptance.of(job("a", replicas=3), None)
    assert len(server.asked) == 3


async def test_policies_and_quotas_change_so_it_is_asked_again_in_time() -> None:
    server = Server()
    await server.acceptance.of(job("a"), None)
    server.now += ALIKE_SECONDS - 1
    await server.acceptance.of(job("b"), None)
    server.now += 1
    await server.acceptance.of(job("c"), None)
    server.now -= 2 * ALIKE_SECONDS  # the clock was set back
    await server.acceptance.of(job("d"), None)
    assert server.asked == ["a", "c", "d"]


async def test_a_refusal_is_each_jobs_own() -> None:
    server = Server(accepts=False)
    server.open.clear()
    waiting = [asyncio.ensure_future(server.acceptance.of(job(name), None)) for name in ("a", "b")]
    await asyncio.sleep(0)
    server.open.set()
    said = await asyncio.gather(*waiting)
    assert [each.message for each in said if isinstance(each, Refusal)] == [
        "pods of a are refused",
        "pods of b are refused",
    ]


async def test_who_waited_for_one_that_failed_asks_itself() -> None:
    server = Server()

    async def fails(job: Job, pool: Pool | None) -> Accepted | Refusal:
        server.asked.append(job.name)
        await asyncio.sleep(0)
        if len(server.asked) == 1:
            raise ConnectionError("the API server went away")
        return Accepted()

    acceptance = Acceptance(fails, lambda: server.now)
    first = asyncio.ensure_future(acceptance.of(job("a"), None))
    second = asyncio.ensure_future(acceptance.of(job("b"), None))
    with pytest.raises(ConnectionError):
        await first
    assert await second == Accepted()
    assert server.asked == ["a", "b"]


async def test_no_more_is_kept_than_so_many_templates() -> None:
    server = Server()
    for replicas in range(1, MAX_KNOWN + 3):
        await server.acceptance.of(job("a", replicas=replicas), None)
    await server.acceptance.of(job("a", replicas=MAX_KNOWN + 2), None)
    assert len(server.asked) == MAX_KNOWN + 2
    await server.acceptance.of(job("a", replicas=1), None)
    assert len(server.asked) == MAX_KNOWN + 3
