"""The fault table, first part: what the metadata service does, and what the node and its pods then look like."""

from dataclasses import replace
from pathlib import Path

import pytest

from spot_training.api.times import format_time
from spot_training.node.notice import Nothing, Notices
from spot_training.node.sources import Source
from spot_training.node.sources.eci import eci
from tests.unit.node import wire
from tests.unit.node.api import Api
from tests.unit.node.metadata import NONSENSE
from tests.unit.node.waiting import until
from tests.unit.node.working import NODE, Script, drained, due, marked, unmarked, working, workload

NOT_SCHEDULED = wire.whole("404 Not Found", b"404 page not found")


def guest_agent(path: Path) -> Source:
    """The source at this socket, with less patience."""
    return replace(eci(str(path)), answer_seconds=0.2)


def scheduled() -> wire.Answering:
    """A reclamation in a minute, as the guest agent tells it."""
    (notice,) = due(60).notices
    assert notice.says is not None
    return wire.whole("200 OK", f'"{format_time(notice.says)}"'.encode(), "application/json")


async def test_metadata_down_at_start(api: Api, tmp_path: Path) -> None:
    workload(api)
    path = tmp_path / "s"
    async with working(api, guest_agent(path)) as agent:
        await until("not ready", lambda: agent.pulse.unknown_in_a_row > 20, lambda: agent.pulse)
        assert not agent.pulse.ready and agent.pulse.alive
        assert api.writes == []
        async with wire.service(path, scheduled()):
            await drained(api)
            assert agent.pulse.ready


async def test_metadata_down_in_the_middle(api: Api, tmp_path: Path) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    path = tmp_path / "s"
    async with working(api, guest_agent(path)) as agent:
        async with wire.service(path, scheduled()):
            await until("refusals", lambda: bool(api.told.get("guarded")), lambda: api.told)
        path.unlink(missing_ok=True)
        await until("not ready", lambda: agent.pulse.unknown_in_a_row > 20, lambda: agent.pulse)
        await marked(api)
        # A guest agent that comes back and has not learnt of the notice yet.
        async with wire.service(path, NOT_SCHEDULED) as requests:
            await until("two answers", lambda: len(requests) >= 2, lambda: requests)
        path.unlink(missing_ok=True)
        await until("not ready", lambda: agent.pulse.unknown_in_a_row > 20, lambda: agent.pulse)
        api.budgets.clear()
        await drained(api)


@pytest.mark.parametrize("name", NONSENSE)
async def test_metadata_nonsense(api: Api, tmp_path: Path, name: str) -> None:
    workload(api)
    nonsense, _ = NONSENSE[name]
    path = tmp_path / "s"
    async with working(api, guest_agent(path)) as agent:
        async with wire.service(path, nonsense):
            await until("no answer", lambda: agent.pulse.unknown_in_a_row >= 3, lambda: agent.pulse)
            assert not agent.pulse.ready
            assert api.writes == []
        async with wire.service(path, scheduled()):
            await drained(api)
        async with wire.service(path, nonsense):
            await until("no answer", lambda: agent.pulse.unknown_in_a_row >= 6, lambda: agent.pulse)
            await marked(api)


async def test_two_notices_at_once_and_the_second_is_earlier(api: Api) -> None:
    first, second = due(200), due(90)
    async with working(api, Script(Notices(first.notices + second.notices))):
        await marked(api)
    annotations = api.nodes[NODE]["metadata"]["annotations"]
    assert annotations["spot.training/notice-id"] == second.notices[0].id


async def test_an_earlier_second_notice_takes_the_marks_and_gives_them_back(api: Api) -> None:
    first, second = due(200), due(90)
    source = Script(first)

    def borne() -> str:
        found: str = api.nodes[NODE]["metadata"]["annotations"]["spot.training/notice-id"]
        return found

    async with working(api, source):
        await marked(api)
        source.answer = Notices(first.notices + second.notices)
        await until("the earlier", lambda: borne() == second.notices[0].id, lambda: api.nodes)
        source.answer = first
        await until("the first again", lambda: borne() == first.notices[0].id, lambda: api.nodes)
        await marked(api)
        source.answer = Nothing()
        await unmarked(api)


async def test_conditions_end_with_a_notice_that_is_withdrawn_before_its_own_are_due(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    later, sooner = due(250), due(200)
    source = Script(later)
    async with working(api, source) as agent:
        await until("shown", lambda: api.conditions(NODE).get("DrainInProgress") == "True", lambda: api.nodes)
        monkeypatch.setattr(agent._marker, "_apart", 3600.0)
        source.answer = sooner
        await until(
            "the other's marks",
            lambda: (
                api.nodes[NODE]["metadata"]["annotations"]["spot.training/notice-id"] == sooner.notices[0].id
            ),
            lambda: api.nodes,
        )
        source.answer = Nothing()
        await unmarked(api)
    assert api.conditions(NODE) == {"DrainInProgress": "False", "Drained": "False"}


async def test_notice_withdrawn_in_the_middle_of_a_drain(api: Api) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    source = Script(due(250))
    async with working(api, source):
        await until("refusals", lambda: bool(api.told.get("guarded")), lambda: api.told)
        await until(
            "progress", lambda: api.conditions(NODE).get("DrainInProgress") == "True", lambda: api.nodes
        )
        source.answer = Nothing()
        await unmarked(api)
        await until("the event", lambda: api.events[-1]["reason"] == "NoticeWithdrawn", lambda: api.events)
    assert "guarded" in api.pods
    assert {request for request, _ in api.told["guarded"]} == {"refused"}
    assert api.conditions(NODE) == {"DrainInProgress": "False", "Drained": "False"}
