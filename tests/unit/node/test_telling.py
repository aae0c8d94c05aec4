"""The whole agent and whom it tells: when, once, and in nobody's way."""

import asyncio
import logging
from collections.abc import Mapping

import pytest
from aiohttp import web

from spot_training.node import announce as announce_module
from spot_training.node.announce import MOST_UNDER_WAY
from spot_training.node.notice import Nothing, Notice, Notices
from tests.unit.node.api import Api, broken
from tests.unit.node.waiting import until
from tests.unit.node.working import NODE, Ear, Script, drained, due, marked, unmarked, working, workload

REBALANCE = Notices((Notice("aws-rebalance-1", "rebalance", "aws", None),))


class Deaf(Ear):
    """An outlet that is told and never done."""

    async def send(self, given: Mapping[str, str]) -> None:
        await super().send(given)
        await asyncio.Event().wait()


async def told(ear: Ear, *occasions: str) -> None:
    await until(f"{occasions}", lambda: ear.occasion() == list(occasions), lambda: ear.heard)


async def test_a_notice_is_told_and_then_that_the_node_is_empty(api: Api) -> None:
    workload(api)
    ear, answer = Ear(), due(60)
    async with working(api, Script(answer), outlets=[ear]):
        await drained(api)
        await told(ear, "notice", "drained")
    first, last = ear.heard
    (notice,) = answer.notices
    assert first["notice"] == last["notice"] == notice.id
    assert (first["node"], first["cluster"], first["kind"], first["source"]) == (
        NODE,
        "test",
        "reclaim",
        "eci",
    )
    assert first["text"].startswith(
        f"Node {NODE}, cluster test: this node is taken away at {first['deadline']}"
    )
    assert (first["pods_left"], last["pods_left"]) == ("", "0")
    assert "all pods have left" in last["text"] and "s before the deadline" in last["text"]


async def test_nobody_who_does_not_listen_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce_module, "FLUSH_SECONDS", 0.05)
    workload(api)
    deaf, ear = Deaf(), Ear()
    async with working(api, Script(due(60)), outlets=[deaf, ear]):
        await drained(api)
        await told(ear, "notice", "drained")
        await told(deaf, "notice", "drained")


async def test_an_outlet_that_fails_unforeseen_harms_nobody(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Ear):
        async def send(self, given: Mapping[str, str]) -> None:
            raise RecursionError("nobody thought of this")

    workload(api)
    ear = Ear()
    async with working(api, Script(due(60)), outlets=[Faulty(), ear]):
        await drained(api)
        await told(ear, "notice", "drained")
    assert "nobody thought of this" in caplog.text


async def test_a_notice_is_told_before_any_pod_has_gone_and_after_the_marks_were_tried(api: Api) -> None:
    class Witness(Ear):
        async def send(self, given: Mapping[str, str]) -> None:
            await super().send(given)
            seen.append((list(api.writes), api.leaving()))

    workload(api)
    seen: list[tuple[list[str], list[str]]] = []
    ear = Witness()
    async with working(api, Script(due(60)), outlets=[ear]):
        await told(ear, "notice", "drained")
    writes, left = seen[0]
    assert writes[0] == f"PATCH /api/v1/nodes/{NODE}"
    assert left == ["train", "web", "api"]


async def test_a_node_that_cannot_be_marked_is_told_of_once(api: Api) -> None:
    ear = Ear()
    api.fault = lambda request: broken(403) if "/nodes/" in request.path else None
    async with working(api, Script(due(60)), outlets=[ear]):
        await until(
            "many tries", lambda: sum("/nodes/" in one for one in api.requests) > 5, lambda: api.requests
        )
    assert ear.occasion().count("notice") == 1


async def test_a_notice_that_comes_in_the_middle_of_a_look_at_the_node_is_told_once(api: Api) -> None:
    source, ear = Script(), Ear()

    def fault(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PATCH":
            return broken(403)
        if source.answer is not answer:
            source.answer = answer
            agent._take(answer)
        return None

    answer = due(60)
    async with working(api, source, outlets=[ear]) as agent:
        await until("polls", lambda: source.asked > 5, lambda: source.asked)
        api.fault = fault
        agent.situation.tell()
        await until("tries", lambda: sum("PATCH" in one for one in api.requests) > 3, lambda: api.requests)
    assert ear.occasion().count("notice") == 1


async def test_an_agent_that_starts_again_repeats_nothing(api: Api) -> None:
    ear = Ear()
    workload(api)
    source = Script(due(60))
    async with working(api, source, outlets=[ear]):
        await drained(api)
        await told(ear, "notice", "drained")
    events = [event["reason"] for event in api.events]
    again = Script(source.answer)
    async with working(api, again, outlets=[ear]):
        await until("polls", lambda: again.asked > 20, lambda: again.asked)
        await drained(api)
    assert ear.occasion() == ["notice", "drained"]
    assert [event["reason"] for event in api.events] == events == ["SpotReclaim", "Drained"]


async def test_a_withdrawal_is_told(api: Api) -> None:
    api.add_pod("guarded", node=NODE)
    api.budgets = {"guarded"}
    source, ear = Script(due(250)), Ear()
    async with working(api, source, outlets=[ear]):
        await told(ear, "notice")
        await marked(api)
        source.answer = Nothing()
        await unmarked(api)
        await told(ear, "notice", "withdrawn")
    assert ear.heard[1]["notice"] == ear.heard[0]["notice"]
    assert "no reclamation is announced any more" in ear.heard[1]["text"]


async def test_a_warning_is_told_as_such_and_again_as_a_notice_when_it_becomes_one(api: Api) -> None:
    source, ear = Script(REBALANCE), Ear()
    async with working(api, source, outlets=[ear]):
        await told(ear, "warning")
        assert (ear.heard[0]["deadline"], ear.heard[0]["seconds_left"]) == ("", "")
        source.answer = Notices((*REBALANCE.notices, *due(60).notices))
        await told(ear, "warning", "notice", "drained")
        source.answer = Nothing()
        await told(ear, "warning", "notice", "drained", "withdrawn")


async def test_a_dry_run_only_logs_what_it_would_tell(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ear = Ear()
    async with working(api, Script(due(60)), outlets=[ear], dry_run=True):
        await until("the log", lambda: "dry run: would tell Ear" in caplog.text, lambda: caplog.text)
    assert ear.heard == [] and api.events == []


async def test_cordon_only_tells_the_notice_and_its_withdrawal(api: Api) -> None:
    workload(api)
    source, ear = Script(due(60)), Ear()
    async with working(api, source, outlets=[ear], drain=False):
        await told(ear, "notice")
        await marked(api)
        source.answer = Nothing()
        await told(ear, "notice", "withdrawn")


async def test_what_is_under_way_is_bounded(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(announce_module, "FLUSH_SECONDS", 0.05)
    source, deaf = Script(), Deaf()
    async with working(api, source, outlets=[deaf]):
        for number in range(MOST_UNDER_WAY):
            source.answer = due(60 + number)
            await until(
                "the notice",
                lambda wanted=source.answer.notices[0].id: (  # type: ignore[misc]
                    api.nodes[NODE]["metadata"].get("annotations", {}).get("spot.training/notice-id")
                    == wanted
                ),
                lambda: api.nodes,
            )
            source.answer = Nothing()
            await unmarked(api)
    assert len(deaf.heard) <= MOST_UNDER_WAY
    assert "one message is dropped" in caplog.text


# Local data.


async def test_pods_whose_local_data_is_lost_are_named_before_they_go(api: Api) -> None:
    on_disk = [{"name": "scratch", "emptyDir": {}}]
    api.add_pod("train", node=NODE, job=True, volumes=on_disk)
    api.add_pod("cache", node=NODE, volumes=on_disk)
    api.add_pod("web", node=NODE, volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}])
    api.add_pod("going", node=NODE, volumes=on_disk)
    api.add_pod("logs", node=NODE, owner="DaemonSet", volumes=on_disk)
    api.stops["going"] = 3600
    api._stop("going", 20)
    async with working(api, Script(due(60))):
        await until(
            "the event", lambda: any(e["reason"] == "LocalDataLost" for e in api.events), lambda: api.events
        )
        await until("the others gone", lambda: api.leaving() == ["going"], lambda: api.pods)
    (event,) = [event for event in api.events if event["reason"] == "LocalDataLost"]
    assert event["type"] == "Warning"
    assert "is lost with them: ns/cache, ns/train (notice eci-" in event["note"]
    posted = api.requests.index("POST /apis/events.k8s.io/v1/namespaces/default/events")
    assert posted < api.requests.index("DELETE /api/v1/namespaces/ns/pods/train")


async def test_of_many_pods_with_local_data_some_are_named(api: Api) -> None:
    for index in range(40):
        api.add_pod(f"{'p' * 200}{index:02}", node=NODE, volumes=[{"name": "scratch", "emptyDir": {}}])
    async with working(api, Script(due(60))):
        await drained(api)
        await until(
            "the event", lambda: any(e["reason"] == "LocalDataLost" for e in api.events), lambda: api.events
        )
    (event,) = [event for event in api.events if event["reason"] == "LocalDataLost"]
    # A longer one would be refused.
    assert len(event["note"]) == 1024 and event["note"].endswith(")")


# Volumes.


def volumes(api: Api, *names: str) -> None:
    status = api.nodes[NODE]["status"]
    status["volumesAttached"] = [{"name": name, "devicePath": ""} for name in names]
    status["volumesInUse"] = list(names)


async def test_a_node_is_drained_only_when_its_volumes_are_detached(api: Api) -> None:
    workload(api)
    volumes(api, "kubernetes.io/csi/ebs^vol-1")
    ear = Ear()
    async with working(api, Script(due(60)), outlets=[ear]):
        await until("no pods", lambda: not api.leaving(), lambda: api.told)
        await until(
            "what is waited for",
            lambda: any(
                (one["type"], one["status"], one["reason"]) == ("DrainInProgress", "True", "VolumesAttached")
                for one in api.nodes[NODE]["status"]["conditions"]
            ),
            lambda: api.nodes,
        )
        assert api.conditions(NODE)["Drained"] == "False"
        assert ear.occasion() == ["notice"]
        volumes(api)
        await drained(api)
        await told(ear, "notice", "drained")
    assert "not detached" not in ear.heard[1]["text"]


async def test_volumes_are_not_waited_for_past_the_time_that_is_left(api: Api) -> None:
    workload(api)
    volumes(api, "kubernetes.io/csi/ebs^vol-1", "kubernetes.io/csi/ebs^vol-2")
    ear = Ear()
    async with working(api, Script(due(7)), outlets=[ear]):
        await drained(api)
        await told(ear, "notice", "drained")
    assert "; 2 volumes are not detached" in ear.heard[1]["text"]


async def test_volumes_are_not_waited_for_where_that_is_not_wanted(api: Api) -> None:
    workload(api)
    volumes(api, "kubernetes.io/csi/ebs^vol-1")
    async with working(api, Script(due(3600)), wait_for_volumes=False):
        await drained(api)


async def test_volumes_of_what_stays_are_not_waited_for(api: Api) -> None:
    workload(api)
    api.add_pod("store", node=NODE, owner="DaemonSet", volumes=[{"name": "disk", "ephemeral": {}}])
    volumes(api, "kubernetes.io/csi/ebs^vol-1")
    async with working(api, Script(due(3600))):
        await drained(api)


async def test_an_agent_that_starts_again_goes_on_waiting_for_volumes(api: Api) -> None:
    workload(api)
    volumes(api, "kubernetes.io/csi/ebs^vol-1")
    ear, source = Ear(), Script(due(3600))

    def waits() -> bool:
        return any(one["reason"] == "VolumesAttached" for one in api.nodes[NODE]["status"]["conditions"])

    async with working(api, source, outlets=[ear]):
        await until("the wait", waits, lambda: api.nodes)
    again = Script(source.answer)
    async with working(api, again, outlets=[ear]):
        await until("polls", lambda: again.asked > 20, lambda: again.asked)
        assert waits() and ear.occasion() == ["notice"]
        volumes(api)
        await drained(api)
        await told(ear, "notice", "drained")
