"""Nodes kept warm: as many as are asked for and never more, given up to whoever comes, and counted as free."""

import dataclasses
import signal
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.__main__ import main
from spot_training.api.pool import InterruptionCount, Interruptions, SpotPoolStatus
from spot_training.api.times import format_second
from spot_training.cluster.client import ApiError, Client
from spot_training.control.cache import Cache
from spot_training.control.conditions import find
from spot_training.control.draft import Story
from spot_training.control.events import Announcer
from spot_training.control.headroom import (
    RETRY_SECONDS,
    Headroom,
    Placeholders,
    headroom,
    placeholder,
    with_headroom,
)
from spot_training.control.metrics import Metrics
from spot_training.control.policies.fitting import shape_of
from spot_training.control.pools import PoolReporter
from spot_training.control.read import read_pod
from spot_training.control.world import Node, Pod, Pool
from tests.unit.control.build import GPU, NOW, node, pool, reclaim, spec
from tests.unit.control.objects import Json, merged, raw_node, raw_pool

SETTINGS = Placeholders("spot", "pause:1", "low", ("secret",))


def warm_pool(nodes: int = 2, **fields: Any) -> Pool:
    about = {"provisioning": "Autoscaled", "headroom": {"nodes": nodes, **fields.pop("headroom", {})}}
    return dataclasses.replace(pool("a", **about, **fields), uid="a-uid")


def holder(made: Pool, index: int = 0, on: str = "", gpus: int = 4, **fields: Any) -> Pod:
    """The pod of that number, as the API server has it."""
    raw = placeholder(made, index, gpus, SETTINGS)
    raw["metadata"] |= {"uid": f"h-{index}", "resourceVersion": "5"}
    raw["spec"] |= {"nodeName": on, "priority": -10}
    return dataclasses.replace(read_pod(raw), **fields)


def look(made: Pool, *pods: Pod, nodes: tuple[Node, ...] = (), elsewhere: tuple[Node, ...] = ()) -> Headroom:
    members = {each.name: each for each in nodes}
    known = members | {each.name: each for each in elsewhere}
    found = headroom(made, members, known, pods, SETTINGS, NOW)
    assert len(pods) + len(found.create) <= max(len(pods), found.nodes), "more than were asked for"
    return found


A1, A2 = node("a1"), node("a2")


def names(found: Headroom) -> list[str]:
    return [each.name for each in found.delete]


# What is there and what is to be done


def test_as_many_as_are_asked_for_are_made() -> None:
    made = warm_pool()
    assert look(made, nodes=(A1,)).create == (0, 1)
    assert look(made, holder(made, 1, "a1"), nodes=(A1,)).create == (0,)
    both = look(made, holder(made, 0, "a1"), holder(made, 1, "a2"), nodes=(A1, A2))
    assert (both.create, both.delete, both.warm) == ((), (), 2)
    assert both.reason == "HeadroomWarm"


def test_one_that_waits_for_a_node_is_not_warm_and_the_scheduler_is_quoted() -> None:
    made = warm_pool()
    waits = holder(made, 1, trouble="Unschedulable: 0/3 nodes are available")
    found = look(made, holder(made, 0, "a1"), waits, nodes=(A1,))
    assert (found.create, found.warm, found.reason) == ((), 1, "HeadroomPending")
    assert found.message == (
        "1 of 2 nodes are kept warm; the others wait for nodes: Unschedulable: 0/3 nodes are available"
    )
    unready = look(made, holder(made, 0, "a1"), nodes=(dataclasses.replace(A1, ready=False),))
    assert unready.warm == 0


def test_what_goes_is_made_again_when_its_name_is_free() -> None:
    made = warm_pool(1)
    assert look(made, holder(made, 0, "a1", deleting=True), nodes=(A1,)).create == ()
    ended = look(made, holder(made, 0, "a1", ended=True), nodes=(A1,))
    assert (names(ended), ended.create) == (["a-headroom-0"], ())
    assert look(made, nodes=(A1,)).create == (0,)


def test_lowering_it_removes_the_last_ones() -> None:
    two = warm_pool(2)
    pods = holder(two, 0, "a1"), holder(two, 1, "a2")
    assert names(look(warm_pool(1), *pods, nodes=(A1, A2))) == ["a-headroom-1"]
    assert len(names(look(warm_pool(0), *pods, nodes=(A1, A2)))) == 2
    none = dataclasses.replace(pool("a"), uid="a-uid")
    assert len(names(look(none, *pods, nodes=(A1, A2)))) == 2
    going = dataclasses.replace(two, deleting=True)
    assert (len(names(look(going, *pods, nodes=(A1, A2)))), look(going, nodes=(A1,)).create) == (2, ())


def broken() -> Pool:
    """A pool whose breaker is open."""
    recent = [InterruptionCount(at=format_second(NOW - 60), count=3)]
    status = SpotPoolStatus(interruptions=Interruptions(last_hour=3, recent=recent))
    return dataclasses.replace(warm_pool(maxInterruptionsPerHour=2), status=status)


def test_nothing_is_kept_warm_while_the_breaker_is_open() -> None:
    made = broken()
    found = look(made, holder(made, 0, "a1"), nodes=(A1,))
    assert (names(found), found.create, found.reason) == (["a-headroom-0"], (), "HeadroomPaused")
    assert "until 2030-03-17T18:" in found.message


def test_a_node_that_will_be_taken_or_has_left_the_pool_is_given_up() -> None:
    made = warm_pool(1)
    pod = holder(made, 0, "a1")
    assert names(look(made, pod, nodes=(dataclasses.replace(A1, notice=reclaim()),))) == ["a-headroom-0"]
    assert names(look(made, pod, nodes=(A2,), elsewhere=(A1,))) == ["a-headroom-0"]
    assert names(look(made, pod, nodes=(A2,))) == [], "a node that has not been heard of yet may be coming"


def test_what_was_made_from_another_definition_is_replaced() -> None:
    old = holder(warm_pool(1), 0, "a1")
    changed = warm_pool(1, tolerations=[{"key": "gpu", "operator": "Exists"}])
    assert names(look(changed, old, nodes=(A1,))) == ["a-headroom-0"]
    assert names(look(warm_pool(1), old, nodes=(node("a1", gpus=8),))) == ["a-headroom-0"]
    again = dataclasses.replace(warm_pool(1), uid="another")
    assert names(look(again, old, nodes=(A1,))) == ["a-headroom-0"]


def test_the_size_of_a_node_is_seen_or_said() -> None:
    found = look(warm_pool())
    assert (found.create, found.reason) == ((), "NodeSizeUnknown")
    assert "set headroom.gpusPerNode" in found.message
    assert look(warm_pool(headroom={"gpusPerNode": 8})).gpus == 8
    assert look(warm_pool(), nodes=(A1, node("a2", gpus=8))).gpus == 8
    known = warm_pool(1)
    kept = look(known, holder(known, 0))
    assert kept.delete == (), "the last node has gone, and its holder waits for the next one"


@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["", "a1", "a2"]), st.booleans(), st.booleans())),
)
def test_there_are_never_more_than_were_asked_for(
    wanted: int, there: list[tuple[int, str, bool, bool]]
) -> None:
    made = warm_pool(wanted)
    pods = {
        index: holder(made, index, on, deleting=deleting, ended=ended) for index, on, deleting, ended in there
    }
    found = look(made, *pods.values(), nodes=(A1, A2))
    kept = {pod.index for pod in pods.values() if pod not in found.delete and not pod.deleting}
    assert kept.isdisjoint(found.create)
    assert len(kept | set(found.create)) <= wanted
    assert all(index < wanted for index in kept)
    assert len(pods) + len(found.create) <= max(len(pods), wanted)
    if all(index < wanted for index in pods):
        assert set(found.create) == set(range(wanted)) - set(pods), "each that is missing"


# The pod


def test_the_pod_asks_for_a_whole_node_and_for_nothing_else_of_the_cluster() -> None:
    made = placeholder(warm_pool(tolerations=[{"key": "gpu", "operator": "Exists"}]), 1, 8, SETTINGS)
    about = made["spec"]
    assert made["metadata"]["namespace"] == "spot"
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("SpotPool", "a", "a-uid")
    assert "blockOwnerDeletion" not in owner
    (container,) = about["containers"]
    assert (container["image"], container["resources"]["limits"]) == ("pause:1", {GPU: "8"})
    assert container["resources"]["requests"][GPU] == "8"
    assert about["nodeSelector"] == {"pool": "a"}
    assert about["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert about["priorityClassName"] == "low"
    assert about["automountServiceAccountToken"] is False
    assert about["imagePullSecrets"] == [{"name": "secret"}]
    assert about["terminationGracePeriodSeconds"] > 0


def test_only_what_gives_way_counts_as_free() -> None:
    raw = placeholder(warm_pool(), 0, 4, SETTINGS)
    raw["metadata"] |= {"uid": "h", "resourceVersion": "5"}
    assert read_pod(raw | {"spec": raw["spec"] | {"priority": -10}}).pool == "a"
    assert read_pod(raw | {"spec": raw["spec"] | {"priority": 0}}).pool == ""
    assert read_pod(raw).pool == ""


def test_what_it_holds_is_free_for_jobs() -> None:
    cache = Cache()
    cache.pools.put(raw_pool("a"))
    cache.nodes.put(raw_node("a1"))
    raw = placeholder(warm_pool(), 0, 4, SETTINGS)
    raw["metadata"] |= {"uid": "h", "resourceVersion": "5"}
    raw["spec"] |= {"priority": -10, "nodeName": "a1"}
    cache.put_pod(raw)
    four = shape_of(spec().template.spec)
    assert cache.supply.fit("a", four).slots == 1
    assert [pod.name for pod in cache.placeholders("a")] == ["a-headroom-0"]
    raw["metadata"]["resourceVersion"] = "6"
    cache.remove_pod(raw)
    assert cache.placeholders("a") == ()
    assert cache.supply.fit("a", four).slots == 1


def test_its_program_ends_when_it_is_told_to_though_nobody_handles_the_signal() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        signal.raise_signal(signal.SIGTERM)
        assert main(["pause"]) == 0
        assert signal.SIGTERM not in signal.sigpending(), "it was taken"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What is said


def test_the_condition_and_the_counts_come_with_headroom_and_an_event_tells_of_each_change() -> None:
    made = warm_pool(1)
    found = look(made, holder(made, 0), nodes=(A1,))
    status, story = with_headroom(made, made.status, found, NOW)
    assert story == Story("Normal", "HeadroomPending", found.message)
    assert status.headroom is not None
    assert (status.headroom.nodes, status.headroom.warm) == (1, 0)
    assert with_headroom(made, status, found, NOW) == (status, None)
    full = look(made, holder(made, 0, "a1"), nodes=(A1,))
    status, story = with_headroom(made, status, full, NOW)
    said = find(status.conditions, "Headroom")
    assert said is not None
    assert (said.status, said.reason) == ("True", "HeadroomWarm")
    assert story is not None
    off = dataclasses.replace(pool("a"), uid="a-uid")
    status, story = with_headroom(off, status, look(off, nodes=(A1,)), NOW)
    said = find(status.conditions, "Headroom")
    assert (status.headroom, story, said and said.reason) == (None, None, "NotWanted")
    never = with_headroom(off, off.status, look(off, nodes=(A1,)), NOW)
    assert never == (off.status, None)


async def test_metrics_tell_what_is_kept_warm() -> None:
    metrics, made = Metrics(), warm_pool()
    status, _ = with_headroom(made, made.status, look(made, holder(made, 0, "a1"), nodes=(A1,)), NOW)
    leading = True
    pools = [dataclasses.replace(made, status=status), pool("b")]
    metrics.follow(lambda: (), lambda: 0, lambda: leading, lambda: pools)
    read = metrics.registry.get_sample_value
    assert read("spot_operator_headroom_wanted_nodes", {"pool": "a"}) == 2
    assert read("spot_operator_headroom_warm_nodes", {"pool": "a"}) == 1
    assert read("spot_operator_headroom_warm_nodes", {"pool": "b"}) is None
    leading = False
    assert read("spot_operator_headroom_warm_nodes", {"pool": "a"}) is None


# The edge


class _Server:
    """A pool and its pods."""

    def __init__(self, raw: Json) -> None:
        self.raw, self.version = raw, 1
        self.pods: dict[str, Json] = {}
        self.refusal: ApiError | None = None
        self.events: list[str] = []

    def _next(self) -> str:
        self.version += 1
        return str(self.version)

    async def patch(self, path: str, body: Json) -> Json:
        assert path.endswith("/spotpools/a/status")
        self.raw = merged(self.raw, {"status": body["status"]})
        self.raw["metadata"]["resourceVersion"] = self._next()
        return self.raw

    async def create(self, path: str, body: Json) -> Json:
        assert path == "/api/v1/namespaces/spot/pods"
        if self.refusal is not None:
            raise self.refusal
        name = body["metadata"]["name"]
        if name in self.pods:
            raise ApiError(409, "AlreadyExists", name, {}, None)
        made = body | {"spec": body["spec"] | {"priority": -10}}
        made["metadata"] |= {"uid": f"{name}-{self.version}", "resourceVersion": self._next()}
        self.pods[name] = made
        return made

    async def delete(self, path: str, uid: str) -> Json:
        pod = self.pods.pop(path.rsplit("/", 1)[1])
        assert pod["metadata"]["uid"] == uid
        return {"kind": "Status"}


class _Told:
    """In the place of the announcer."""

    def __init__(self) -> None:
        self.stories: list[Story] = []

    def tell_of(self, about: dict[str, str], stories: tuple[Story, ...], now: float) -> None:
        assert (about["kind"], about["namespace"]) == ("SpotPool", "default")
        self.stories += stories


class _Edge:
    """The reporter, what it writes to, and the watch, which brings what it is told to."""

    def __init__(self, **pool_spec: Any) -> None:
        self.server = _Server(
            raw_pool("a", provisioning="Autoscaled", **{"headroom": {"nodes": 2}} | pool_spec)
        )
        self.told = _Told()
        self.restart()

    def restart(self) -> None:
        self.cache = Cache()
        self.cache.pools.put(self.server.raw)
        self.cache.nodes.put(raw_node("a1"))
        for raw in self.server.pods.values():
            self.cache.put_pod(raw)
        self.reporter = PoolReporter(
            cast(Client, self.server),
            self.cache,
            lambda: NOW,
            placeholders=SETTINGS,
            announcer=cast(Announcer, self.told),
        )

    async def report(self) -> float:
        again = await self.reporter.report("a")
        assert again is not None
        return again

    def gone(self, name: str) -> None:
        raw = self.server.pods.pop(name)
        raw["metadata"]["resourceVersion"] = self.server._next()
        self.cache.remove_pod(raw)

    def said(self) -> tuple[str, str]:
        found = find(self.cache.pools.items["a"].status.conditions, "Headroom")
        assert found is not None
        return found.reason, found.message

    def edit(self, **fields: Any) -> None:
        self.server.raw["spec"] |= fields
        self.server.raw["metadata"]["resourceVersion"] = self.server._next()
        self.cache.pools.put(self.server.raw)


@pytest.fixture
def edge() -> _Edge:
    return _Edge()


async def test_pods_are_made_and_what_was_pushed_away_is_made_again(edge: _Edge) -> None:
    await edge.report()
    assert sorted(edge.server.pods) == ["a-headroom-0", "a-headroom-1"]
    await edge.report()
    edge.gone("a-headroom-1")
    await edge.report()
    assert sorted(edge.server.pods) == ["a-headroom-0", "a-headroom-1"]
    assert edge.said()[0] == "HeadroomPending"
    assert [story.reason for story in edge.told.stories] == ["HeadroomPending"]


async def test_an_operator_that_starts_anew_makes_no_more(edge: _Edge) -> None:
    for _ in range(3):
        await edge.report()
        edge.restart()
    assert len(edge.server.pods) == 2


async def test_one_that_has_not_heard_of_them_makes_no_more_either(edge: _Edge) -> None:
    await edge.report()
    there = dict(edge.server.pods)
    edge.server.pods.clear()
    edge.restart()
    edge.server.pods |= there
    again = await edge.report()
    assert again < 1, "it is looked at again soon"
    assert edge.server.pods == there


async def test_lowered_headroom_is_given_back(edge: _Edge) -> None:
    await edge.report()
    edge.edit(headroom={"nodes": 1})
    await edge.report()
    assert sorted(edge.server.pods) == ["a-headroom-0"]
    edge.edit(headroom=None)
    edge.server.raw["spec"].pop("headroom")
    edge.restart()
    await edge.report()
    assert edge.server.pods == {}


async def test_a_refusal_is_said_and_tried_again(edge: _Edge) -> None:
    edge.server.refusal = ApiError(403, "Forbidden", "exceeded quota: tight", {}, None)
    assert await edge.report() < 1
    assert await edge.report() == RETRY_SECONDS
    reason, message = edge.said()
    assert reason == "HeadroomRefused"
    assert message.endswith("pod a-headroom-0 cannot be made: exceeded quota: tight")
    assert ("Warning", "HeadroomRefused") in [(story.type, story.reason) for story in edge.told.stories]
    edge.server.refusal = None
    await edge.report()
    await edge.report()
    assert len(edge.server.pods) == 2
    assert edge.said()[0] == "HeadroomPending"


async def test_pods_of_others_in_other_namespaces_are_left_alone(edge: _Edge) -> None:
    raw = placeholder(warm_pool(9), 7, 4, SETTINGS)
    raw["metadata"] |= {"uid": "theirs", "resourceVersion": "5", "namespace": "theirs"}
    raw["spec"]["priority"] = -10
    edge.cache.put_pod(raw)
    await edge.report()
    assert len(edge.server.pods) == 2
