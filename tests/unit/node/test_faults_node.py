"""The fault table, third part: clocks, and Nodes that go and come back."""

import copy

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Nothing
from tests.unit.node.api import Api
from tests.unit.node.waiting import until
from tests.unit.node.working import (
    MARGIN,
    NODE,
    POOL,
    Ear,
    Script,
    drained,
    due,
    marked,
    unmarked,
    working,
    workload,
)


@pytest.mark.parametrize("skew", [-300, 300])
async def test_clock_skew_of_five_minutes(api: Api, skew: float) -> None:
    api.skew = skew
    api.add_pod("train", node=NODE, job=True, terminationGracePeriodSeconds=600)
    # The notice is there before the agent is: its first answer too is judged by the right clock.
    answer = due(60, api.now())
    async with working(api, Script(answer)):
        await drained(api)
    annotations = api.nodes[NODE]["metadata"]["annotations"]
    assert parse_time(annotations["spot.training/reclaim-deadline"]) == answer.notices[0].says
    assert abs(parse_time(annotations["spot.training/noticed-at"]) - api.now()) < 30
    assert 60 - MARGIN - 5 <= api.told["train"][0][1] <= 60 - MARGIN + 2


async def test_deadline_already_past(api: Api) -> None:
    workload(api)
    async with working(api, Script(due(-30))):
        await drained(api)
    assert api.told == {name: [("delete", 1)] for name in ("train", "web", "api")}


async def test_node_deleted_in_the_middle_of_a_drain(api: Api) -> None:
    workload(api)
    api.stops = {"web": 0.2}
    async with working(api, Script(due(60))):
        await marked(api)
        node = api.nodes.pop(NODE)
        await until("no pods", lambda: not api.leaving(), lambda: api.told)
        api.nodes[NODE] = node
        await drained(api)


async def test_node_deleted_and_not_made_again(api: Api) -> None:
    workload(api)
    api.stops = {"web": 0.2}
    source = Script(due(60))
    async with working(api, source) as agent:
        await marked(api)
        del api.nodes[NODE]
        await until("no pods", lambda: not api.leaving(), lambda: api.told)
        polls = source.asked
        await until("many polls", lambda: source.asked > polls + 20, lambda: source.asked)
        assert agent.pulse.ready and agent.pulse.alive


# The machine is back.


async def test_a_node_that_came_back_after_a_reboot_is_put_to_use_again(api: Api) -> None:
    ear = Ear()
    async with working(api, Script(due(60)), outlets=[ear]):
        await drained(api)
    api.told.clear()
    api.add_pod("new", node=NODE)
    async with working(api, Script(Nothing()), outlets=[ear]):
        await unmarked(api)
        await until("the end", lambda: ear.occasion()[-1] == "withdrawn", lambda: ear.heard)
    assert "new" in api.pods and not api.told
    assert ear.occasion() == ["notice", "drained", "withdrawn"]


async def test_a_node_that_came_back_keeps_a_cordon_that_was_there_before(api: Api) -> None:
    api.nodes[NODE]["spec"]["unschedulable"] = True
    async with working(api, Script(due(60))):
        await drained(api)
    async with working(api, Script(Nothing())):
        await until("the taint gone", lambda: api.nodes[NODE]["spec"]["taints"] == [POOL], lambda: api.nodes)
    assert api.nodes[NODE]["spec"]["unschedulable"] is True


async def test_a_new_node_under_the_same_name_is_marked_too_and_unmarked_with_the_notice(api: Api) -> None:
    source = Script(due(60))
    async with working(api, source) as agent:
        await marked(api)
        api.add_node(NODE, taints=[POOL])["metadata"]["uid"] = "another"
        agent.situation.tell()
        await marked(api)
        source.answer = Nothing()
        await unmarked(api)
    assert api.nodes[NODE]["metadata"]["uid"] == "another"


async def test_a_new_node_under_the_same_name_that_nothing_is_announced_for_is_left_alone(api: Api) -> None:
    async with working(api, Script(due(60))):
        await drained(api)
    api.add_node(NODE, taints=[POOL])["metadata"]["uid"] = "another"
    api.writes.clear()
    source = Script(Nothing())
    async with working(api, source):
        await until("many polls", lambda: source.asked > 20, lambda: source.asked)
    assert api.writes == []


async def test_marks_that_were_carried_over_to_a_new_node_are_taken_off(api: Api) -> None:
    async with working(api, Script(due(60))):
        await drained(api)
    old = copy.deepcopy(api.nodes[NODE])
    new = api.add_node(NODE, **old["spec"])
    new["metadata"] |= {"uid": "another", "annotations": old["metadata"]["annotations"]}
    api.add_pod("new", node=NODE)
    api.told.clear()
    async with working(api, Script(Nothing())):
        await unmarked(api)
    assert "new" in api.pods and not api.told
