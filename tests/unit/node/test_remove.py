"""One action against the API server, and what is made of each answer."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from spot_training.cluster.client import Client
from spot_training.node.drain import Action, Step
from spot_training.node.pods import Pod
from spot_training.node.remove import Result, remove
from tests.unit.node.api import Api, broken, running


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running(Api()) as cluster:
        cluster.add_pod("p", node="n")
        yield cluster


async def carried_out(api: Api, step: Step, uid: str = "uid-p", name: str = "p") -> Result:
    async with Client(api.connection, timeout=5) as client:
        return await remove(client, Action(Pod("ns", name, uid), step, 7), "eci-1", api.now())


@pytest.mark.parametrize(("step", "result"), [(Step.EVICT, Result.EVICTED), (Step.DELETE, Result.DELETED)])
async def test_done(api: Api, step: Step, result: Result) -> None:
    assert await carried_out(api, step) is result
    assert api.told["p"] == [(step.value, 7)]


@pytest.mark.parametrize("step", list(Step))
async def test_a_new_pod_of_the_same_name_is_never_touched(api: Api, step: Step) -> None:
    assert await carried_out(api, step, uid="uid-of-its-predecessor") is Result.FAILED
    assert "p" in api.pods and not api.told
    assert "conditions" not in api.pods["p"]["status"]


@pytest.mark.parametrize("step", list(Step))
async def test_one_that_is_not_there_is_gone(api: Api, step: Step) -> None:
    assert await carried_out(api, step, name="q") is Result.GONE


async def test_a_budget_is_told_from_an_overloaded_server(api: Api) -> None:
    api.budgets = {"p"}
    assert await carried_out(api, Step.EVICT) is Result.REFUSED
    api.fault = lambda _: broken(429)
    assert await carried_out(api, Step.EVICT) is Result.FAILED


@pytest.mark.parametrize("step", list(Step))
async def test_an_answer_that_is_no_json_is_a_failure_and_no_crash(api: Api, step: Step) -> None:
    api.fault = lambda _: web.Response(text="<html>captive portal</html>")
    assert await carried_out(api, step) is Result.FAILED
