"""What the API server is asked before an attempt is opened, and for whom its answer holds."""

import asyncio
from typing import Any, cast

import pytest

from spot_training.cluster.client import Client
from spot_training.control.dryruns import HOLDS_SECONDS, DryRuns
from spot_training.control.read import read_job
from spot_training.control.world import Accepted, Job, Refusal
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.sim import refused


class Server:
    """Takes pods or refuses them, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.refusal: Exception | None = None
        self.now = 0.0
        self.priority: int | None = 7
        self.dry_runs = DryRuns(cast(Client, self), lambda: self.now)

    async def create(self, path: str, body: Json, **query: str) -> Json:
        self.asked.append((body["metadata"]["name"], query))
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return body | {"spec": body["spec"] | {"priority": self.priority}}

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def job(name: str, namespace: str = "ns", image: str = "image") -> Job:
    """A job that differs from others in its name, UID and claim at least."""
    raw: Any = raw_job()
    raw["metadata"] |= {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    raw["spec"]["checkpoint"]["claimName"] = f"claim-{name}"
    raw["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return read_job(raw)


@pytest.mark.parametrize(
    ("code", "temporary"), [(403, True), (422, False), (400, False), (429, None), (500, None)]
)
async def test_what_a_refusal_means(code: int, temporary: bool | None) -> None:
    server = Server()
    server.refusal = refused(code, "Word", "in the API server's own words")
    if temporary is None:
        with pytest.raises(Exception, match="own words"):
            await server.dry_runs.ask(job("a"), None)
    else:
        said = await server.dry_runs.ask(job("a"), None)
        assert isinstance(said, Refusal)
        assert (said.temporary, said.message.endswith("in the API server's own words")) == (temporary, True)
    assert server.asked == [("a-dry-run", {"dryRun": "All", "fieldValidation": "Strict"})]


async def test_of_many_jobs_alike_one_is_asked_about() -> None:
    server = Server()
    said = await asyncio.gather(*(server.dry_runs.ask(job(f"job-{each}"), None) for each in range(9)))
    assert said == [Accepted(7)] * 9
    assert server.names == ["job-0-dry-run"]


@pytest.mark.parametrize(
    "other", [job("b", namespace="elsewhere"), job("b", image="another"), job("longer"), job("b.c")]
)
async def test_what_differs_is_asked_about_by_itself(other: Job) -> None:
    server = Server()
    await server.dry_runs.ask(job("a"), None)
    await server.dry_runs.ask(other, None)
    assert server.names == ["a-dry-run", f"{other.name}-dry-run"]


async def test_it_holds_for_a_moment() -> None:
    server = Server()
    await server.dry_runs.ask(job("a"), None)
    server.now = HOLDS_SECONDS
    await server.dry_runs.ask(job("b"), None)
    assert server.names == ["a-dry-run", "b-dry-run"]


async def test_a_refusal_is_said_of_nobody_else_and_ends_what_was_accepted() -> None:
    server = Server()
    await server.dry_runs.ask(job("a"), None)
    server.refusal = refused(403, "Forbidden", "exceeded quota")
    both = (job("b", image="larger"), job("c", image="larger"))
    said = await asyncio.gather(*(server.dry_runs.ask(each, None) for each in both))
    assert all(isinstance(each, Refusal) for each in said)
    await server.dry_runs.ask(job("d"), None)
    assert server.names == ["a-dry-run", "b-dry-run", "c-dry-run", "d-dry-run"]


async def test_where_the_creation_is_refused_it_is_asked_again() -> None:
    server = Server()
    await server.dry_runs.ask(job("a"), None)
    await server.dry_runs.ask(job("a", namespace="other"), None)
    server.dry_runs.forget("ns")
    await server.dry_runs.ask(job("b"), None)
    await server.dry_runs.ask(job("b", namespace="other"), None)
    assert server.names == ["a-dry-run", "a-dry-run", "b-dry-run"]


@pytest.mark.parametrize("told", [100, None])
async def test_the_priority_is_what_the_api_server_resolves(told: int | None) -> None:
    server = Server()
    server.priority = told
    assert await server.dry_runs.ask(job("a"), None) == Accepted(told or 0)
