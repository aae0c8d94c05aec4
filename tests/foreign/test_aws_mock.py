"""AWS's source and an agent on it, against the mock of the metadata service that AWS itself publishes.

IMDSv2 is required there: whoever shows no token gets 401.
"""

import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Answer, Limits, Nothing, Notices
from spot_training.node.sources.aws import LIMITS, Aws, aws
from tests.kit import aws_mock
from tests.unit.node.api import Api
from tests.unit.node.api import running as api_server
from tests.unit.node.waiting import until
from tests.unit.node.working import NODE, POOL, TAINT, drained, marked, working

HOUR = "3600"
LATER = ("--mock-delay-sec", HOUR)
NO_REBALANCE = ("--rebalance-delay-sec", HOUR)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_server(Api()) as cluster:
        cluster.add_node(NODE, taints=[POOL])
        yield cluster


@contextmanager
def mock(*words: str) -> Iterator[Aws]:
    """The source on a mock that was started with these words."""
    with aws_mock.running(*words) as address:
        yield aws(address)


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def taints(api: Api) -> list[object]:
    found: list[object] = api.nodes[NODE]["spec"]["taints"]
    return found


def marks(api: Api) -> dict[str, str]:
    annotations: dict[str, str] = api.nodes[NODE]["metadata"].get("annotations") or {}
    return {key.removeprefix("spot.training/"): value for key, value in annotations.items()}


@dataclass
class Heard:
    """A source, and every time that it has named."""

    source: Aws
    times: set[float | None] = field(default_factory=set)
    name: str = "aws"
    limits: Limits = LIMITS

    async def ask(self) -> Answer:
        answer = await self.source.ask()
        if isinstance(answer, Notices):
            self.times |= {notice.says for notice in answer.notices}
        return answer


def test_the_mock_wants_a_token() -> None:
    with aws_mock.running("spot") as address:
        url = f"{address}/latest/meta-data/spot/instance-action"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=5)
        refused.value.close()
        assert refused.value.code == 401


@pytest.mark.parametrize("command", [("spot", *NO_REBALANCE), ("events",), ()])
async def test_nothing_is_announced_yet(command: tuple[str, ...], api: Api) -> None:
    with mock(*command, *LATER, *NO_REBALANCE) as source:
        for _ in range(3):
            assert await source.ask() == Nothing()


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
async def test_an_interruption(action: str) -> None:
    at = in_days(1 / 720)
    with mock("spot", "--action", action, "--time", at, *NO_REBALANCE) as source:
        answer = await source.ask()
    assert isinstance(answer, Notices), answer
    (notice,) = answer.notices
    assert (notice.kind, notice.id) == ("reclaim", f"aws-{action}-{int(parse_time(at))}")
    # A hibernation begins as it is announced.
    assert notice.says == (None if action == "hibernate" else parse_time(at))


async def test_a_rebalance_recommendation() -> None:
    with mock("spot", "--rebalance-rec-time", "2026-01-02T03:04:05Z", *LATER) as source:
        answer = await source.ask()
    assert isinstance(answer, Notices) and not answer.missing, answer
    said = [(notice.id, notice.kind, notice.says) for notice in answer.notices]
    assert said == [(f"aws-rebalance-{int(parse_time('2026-01-02T03:04:05Z'))}", "rebalance", None)]


@pytest.mark.parametrize("code", ["instance-reboot", "system-maintenance", "instance-retirement"])
async def test_a_scheduled_maintenance(code: str) -> None:
    at = in_days(3)
    with mock("events", "--code", code, "--not-before", at) as source:
        answer = await source.ask()
    assert isinstance(answer, Notices) and not answer.missing, answer
    said = [(notice.id, notice.kind, notice.says) for notice in answer.notices]
    assert said == [("aws-instance-event-1234567890abcdef0", "maintenance", parse_time(at))]


@pytest.mark.parametrize("state", ["completed", "canceled"])
async def test_a_maintenance_that_is_over(state: str) -> None:
    with mock("events", "--state", state) as source:
        assert await source.ask() == Nothing()


async def test_a_service_that_restarts_knows_the_token_no_more() -> None:
    with aws_mock.running("spot", *LATER, *NO_REBALANCE) as address:
        source = aws(address)
        assert await source.ask() == Nothing()
    port = urlsplit(address).port
    assert port is not None
    with aws_mock.running("spot", *NO_REBALANCE, port=port):
        assert isinstance(await source.ask(), Notices)


async def test_an_agent_drains_for_one_interruption_however_often_its_time_is_said_anew(api: Api) -> None:
    """Unless told a time, the mock names the moment two minutes after each request."""
    api.add_pod("web", node=NODE)
    began = time.time()
    with mock("spot", *NO_REBALANCE) as source:
        heard = Heard(source)
        async with working(api, heard):
            await drained(api)
            first = marks(api)
            assert TAINT in taints(api)
            assert api.nodes[NODE]["spec"]["unschedulable"] is True
            assert began + 110 < parse_time(first["reclaim-deadline"]) < began + 135, first
            await until("four times for the same thing", lambda: len(heard.times) >= 4, lambda: heard.times)
    assert marks(api) == first
    told = [event["reason"] for event in api.events]
    assert sorted(told) == ["Drained", "SpotReclaim"], api.events


async def test_an_agent_waits_for_what_is_announced_later(api: Api) -> None:
    with mock("spot", "--mock-delay-sec", "2", *NO_REBALANCE) as source:
        async with working(api, source) as agent:
            await until("a first answer", lambda: agent.pulse.ready, lambda: agent.pulse.reason)
            assert taints(api) == [POOL]
            await marked(api)


async def test_an_agent_taints_for_a_rebalance_and_drains_for_the_interruption_after_it(api: Api) -> None:
    with mock("spot", "--mock-delay-sec", "2") as source:
        async with working(api, source):
            warned = {**TAINT, "value": "rebalance", "effect": "PreferNoSchedule"}
            await until("the warning", lambda: warned in taints(api), lambda: api.nodes)
            assert not api.nodes[NODE]["spec"].get("unschedulable")
            await marked(api)
    assert marks(api)["notice-kind"] == "reclaim"


async def test_an_agent_taints_for_a_maintenance_that_is_days_ahead(api: Api) -> None:
    api.add_pod("web", node=NODE)
    with mock("events", "--code", "system-reboot", "--not-before", in_days(3)) as source:
        async with working(api, source):
            warned = {**TAINT, "value": "maintenance", "effect": "PreferNoSchedule"}
            await until("the warning", lambda: warned in taints(api), lambda: api.nodes)
    assert not api.nodes[NODE]["spec"].get("unschedulable")
    assert api.leaving() == ["web"]
