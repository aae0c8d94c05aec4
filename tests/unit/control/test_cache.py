"""The caches: the newest known state, whatever order events, answers and lists come in."""

import copy
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.control.cache import Cache
from spot_training.control.world import Requirement
from tests.unit.control.objects import Json, ended_pod, raw_job, raw_node, raw_pod

GPU = "nvidia.com/gpu"


def pod(version: int, uid: str = "p-1", name: str = "job-1-0", **fields: Any) -> Json:
    made = raw_pod(name, uid, version)
    made["spec"]["nodeName"] = fields.pop("node", "a1")
    made["status"] |= fields
    return made


def cache(*raws: Json) -> Cache:
    made = Cache()
    made.jobs.put(raw_job())
    made.pools.put(
        {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1"},
            "spec": {"nodeSelector": {"pool": "a"}},
        }
    )
    for raw in raws:
        made.put_pod(raw)
    return made


def pods(made: Cache) -> list[tuple[str, bool]]:
    return [(each.uid, each.removed) for each in made.pods_of("j-1")]


def used(made: Cache) -> dict[tuple[str, str], int]:
    return {
        (name, resource): amount
        for name in ("a1", "n0", "n1")
        for resource, amount in made.supply.used(name).items()
        if "/" in resource
    }


def test_an_older_version_never_replaces_a_newer_one() -> None:
    made = cache(ended_pod(1))
    assert made.put_pod(pod(10))[1] is None
    assert made.pods_of("j-1")[0].ended is True


def test_nor_does_an_older_object_of_the_same_name() -> None:
    made = cache(pod(20, "p-2"))
    assert made.put_pod(pod(19, "p-1"))[1] is None
    assert pods(made) == [("p-2", False)]


def test_a_name_used_again_leaves_a_tombstone_of_the_first() -> None:
    made = cache(pod(10, "p-1"), pod(20, "p-2"))
    assert sorted(pods(made)) == [("p-1", True), ("p-2", False)]
    made.remove_pod(pod(21, "p-1"))
    assert sorted(pods(made)) == [("p-1", True), ("p-2", False)], "a late DELETED of the first"


def test_the_last_event_of_a_pod_is_kept() -> None:
    made = cache(pod(10))
    last = ended_pod(143)
    last["metadata"]["resourceVersion"] = "12"
    made.remove_pod(last)
    (tombstone,) = made.pods_of("j-1")
    assert (tombstone.removed, tombstone.exit and tombstone.exit.code) == (True, 143)
    assert used(made) == {}


@pytest.mark.parametrize("version", [11, 12])
def test_an_answer_that_comes_after_the_deletion_brings_nothing_back(version: int) -> None:
    made = cache(pod(10))
    made.remove_pod(pod(12))
    assert made.put_pod(pod(version))[1] is None
    assert pods(made) == [("p-1", True)]
    assert made.pods.items == {}
    assert used(made) == {}


def test_nor_does_it_where_the_deletion_was_the_first_that_was_heard() -> None:
    made = cache()
    made.remove_pod(pod(12))
    assert made.put_pod(pod(11))[1] is None
    assert pods(made) == [("p-1", True)]


def test_an_object_that_a_list_had_missed_comes_back_with_a_newer_version() -> None:
    made = cache(pod(10))
    made.bury(made.pods_of("j-1")[0])
    assert pods(made) == [("p-1", True)]
    made.put_pod(pod(11))
    assert pods(made) == [("p-1", False)]


def test_an_answer_from_before_the_list_that_it_is_not_in_brings_nothing_back() -> None:
    made = cache(pod(10))
    made.bury(made.pods_of("j-1")[0], version=14)
    assert made.put_pod(pod(12))[1] is None
    assert pods(made) == [("p-1", True)]
    assert used(made) == {}


def test_what_is_buried_twice_is_buried_once() -> None:
    made = cache(pod(10))
    (known,) = made.pods_of("j-1")
    made.bury(known)
    made.bury(known)
    assert pods(made) == [("p-1", True)]
    assert used(made) == {}


def test_tombstones_go_with_their_attempt() -> None:
    made = cache(pod(10))
    made.remove_pod(pod(12))
    current = {"attempt": 2, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    made.jobs.put(raw_job(version=4, current=current))
    made.forget_tombstones(made.jobs.items["ns", "job"])
    assert pods(made) == []


@pytest.mark.parametrize("job_first", [True, False])
def test_nothing_is_left_of_a_job_that_is_gone(job_first: bool) -> None:
    made = cache(pod(10), pod(11, "p-2", "job-1-1"))
    if job_first:
        made.jobs.drop(("ns", "job"), "j-1")
        made.forget_job("j-1")
    made.remove_pod(pod(12))
    made.remove_pod(pod(13, "p-2", "job-1-1"))
    if not job_first:
        made.jobs.drop(("ns", "job"), "j-1")
        made.forget_job("j-1")
    assert pods(made) == []
    assert (made._by_job, made._by_node, dict(made.supply._used)) == ({}, {}, {})


def test_a_pod_that_has_ended_holds_no_gpus() -> None:
    made = cache(pod(10))
    assert used(made) == {("a1", GPU): 3, ("a1", "rdma/hca"): 1}
    made.put_pod(ended_pod(0))
    assert used(made) == {}


def test_jobs_on_a_node() -> None:
    made = cache(pod(10))
    assert made.jobs_on("a1") == {("ns", "job")}
    assert made.jobs_on("a2") == set()
    made.remove_pod(pod(12))
    assert made.jobs_on("a1") == set()
    node = {"index": 0, "name": "a1", "uid": "u"}
    current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z", "nodes": [node]}
    made.jobs.put(raw_job(version=4, current=current))
    assert made.jobs_on("a1") == {("ns", "job")}, "its status says so, though the pod is gone"


def test_a_heartbeat_is_no_change() -> None:
    made = Cache()
    made.nodes.put(raw_node())
    _, before, after = made.nodes.put(raw_node(version=6, heartbeat="2026-04-08T06:00:00Z"))
    assert before == after


def test_a_claim_is_kept_between_two_attempts() -> None:
    made = Cache()
    opened = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    ended = opened | {"end": {"class": "Disruption", "reason": "Reclaimed", "at": "2026-04-08T06:00:00Z"}}
    made.jobs.put(raw_job(current=ended))
    made.jobs.put(raw_job("late", "j-2"))
    mine, late = made.jobs.items["ns", "job"], made.jobs.items["ns", "late"]
    assert (made.world(mine).claim_user, made.world(late).claim_user) == ("", "job")
    made.jobs.put(raw_job(version=4, phase="Succeeded", current=ended))
    assert made.world(late).claim_user == ""


def test_two_jobs_that_both_had_the_claim_do_not_wait_for_each_other() -> None:
    made = Cache()
    ended = {
        "attempt": 1,
        "pool": "a",
        "openedAt": "2026-04-08T05:00:00Z",
        "end": {"class": "Disruption", "reason": "Reclaimed", "at": "2026-04-08T06:00:00Z"},
    }
    made.jobs.put(raw_job(current=ended))
    made.jobs.put(raw_job("late", "j-2", current=ended))
    assert [made.world(job).claim_user for job in made.jobs.items.values()] == ["", "job"]


def test_reservations_of_opened_attempts() -> None:
    made = cache()
    current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
    raw = raw_job(version=4, current=current)
    raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {GPU: "3"}}
    made.jobs.put(raw)
    (reserved,) = made.reservations()
    assert (reserved.pool, reserved.shape.need(GPU), reserved.pods) == ("a", 3, 2)
    made.put_pod(pod(10))
    assert made.reservations()[0].pods == 1
    gone = pod(12, "p-2", "job-1-1")
    made.remove_pod(gone)
    assert made.reservations() == (), "bound once, and gone before it was ever seen"


def test_a_reservation_goes_where_the_attempts_pods_may() -> None:
    made = cache()
    claim = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"}}
    made.claims.put(claim | {"spec": {"accessModes": ["ReadWriteMany"], "volumeName": "pv"}})
    terms = {"capacityType": "OnDemand", "price": "3.00"}
    current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z", "avoid": ["a9"]}
    for version, (own, opened, ceiling) in enumerate(
        [("2.00", {}, "2.00"), ("4.00", terms, "3.00"), ("2.00", terms, "2.00"), (None, terms, "3.00")],
        start=4,
    ):
        raw = raw_job(version=version, current=current | {"terms": opened})
        if own is not None:
            raw["spec"]["maxPricePerNodeHour"] = own
        made.jobs.put(raw)
        (reserved,) = made.reservations()
        assert (set(reserved.avoid), reserved.shape.ceiling) == ({"a9"}, Decimal(ceiling))
    assert reserved.shape.volumes == (), "nobody has seen the volume"
    before, zone = made.supply.version, ((Requirement("zone", "In", ("b",)),),)
    made.put_volume("pv", zone)
    assert made.reservations()[0].shape.volumes == (zone,)
    assert made.supply.version > before, "what was decided without knowing is decided again"


def test_reservations_of_the_same_shape_are_one() -> None:
    made = Cache()
    made.pools.put(
        {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1"},
            "spec": {"nodeSelector": {"pool": "a"}},
        }
    )
    for number, gpus in enumerate(("1", "4", "1")):
        current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
        raw = raw_job(f"job{number}", f"j-{number}", current=current)
        raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {GPU: gpus}}
        made.jobs.put(raw)
    reserved = made.reservations()
    assert sorted((each.shape.need(GPU), each.pods) for each in reserved) == [(1, 4), (4, 2)]
    assert made.provisioning() == {}, "they start on nodes that are there"


def test_who_waits_for_an_autoscaler_waits_until_all_its_pods_are_on_a_node() -> None:
    made = cache()
    current = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z", "provisioned": ["a"]}
    made.jobs.put(raw_job(version=4, current=current))
    assert made.provisioning() == {"a": 1}
    made.put_pod(pod(10))
    assert made.provisioning() == {"a": 1}
    made.put_pod(pod(11, "p-2", "job-1-1"))
    assert made.provisioning() == {}


NAMES, EVENTS = ["job-1-0", "job-1-1"], ["put", "end", "move", "delete", "again", "late", "bury"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(EVENTS), st.integers(0, 9)), max_size=30))
def test_gpus_are_neither_leaked_nor_negative(events: list[tuple[str, str, int]]) -> None:
    made, history, live = cache(), list[Json](), dict[str, Json]()
    for version, (name, event, pick) in enumerate(events, start=100):
        if event == "late" and history:
            made.put_pod(history[pick % len(history)])
        elif event in ("put", "again") and (event == "again") is (name in live):
            live[name] = pod(version, f"{name}-{version}", name, node=f"n{pick % 2}")
            made.put_pod(live[name])
        elif name in live and event == "end":
            live[name] = copy.deepcopy(live[name])
            live[name]["status"] = {"phase": "Failed"}
            live[name]["metadata"]["resourceVersion"] = str(version)
            made.put_pod(live[name])
        elif name in live and event in ("delete", "bury"):
            gone = copy.deepcopy(live.pop(name))
            gone["metadata"]["resourceVersion"] = str(version)
            if event == "delete":
                made.remove_pod(gone)
            else:
                made.bury(made.pods.items["ns", name])
        history += [copy.deepcopy(raw) for raw in live.values()]
    expected: Counter[tuple[str, str]] = Counter()
    for raw in live.values():
        if raw["status"]["phase"] == "Running":
            expected[raw["spec"]["nodeName"], GPU] += 3
            expected[raw["spec"]["nodeName"], "rdma/hca"] += 1
    assert used(made) == dict(expected)
    assert {each.uid for each in made.pods_of("j-1") if not each.removed} == {
        raw["metadata"]["uid"] for raw in live.values()
    }


def agent(version: int, uid: str, ready: bool) -> Json:
    made = raw_pod("agent-0", uid, version)
    made["metadata"]["labels"] = {"spot.training/provider": "eci"}
    made["metadata"]["ownerReferences"] = []
    made["status"]["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]
    return made


def test_agents_are_known_by_node_while_they_are_ready() -> None:
    made = cache()
    job = made.jobs.items["ns", "job"]
    assert made.put_agent(pod(5)) is None
    assert made.put_agent(agent(10, "old", True)) == "a1"
    assert made.put_agent(agent(11, "old", True)) is None
    assert set(made.world(job).agents) == {"a1"}
    # A new one is ready before the old one is gone: nothing changes for the node.
    assert made.put_agent(agent(12, "new", True)) is None
    assert made.put_agent(agent(13, "old", False), removed=True) is None
    assert set(made.world(job).agents) == {"a1"}
    assert made.put_agent(agent(14, "new", False)) == "a1"
    assert set(made.world(job).agents) == set()


def test_a_deleted_jobs_pods_hold_its_claim_until_they_have_stopped() -> None:
    def with_claim(raw: Json) -> Json:
        claim = {"claimName": "claim"}
        raw["spec"]["volumes"] = [{"name": "spot-checkpoint", "persistentVolumeClaim": claim}]
        raw["metadata"]["ownerReferences"][0] |= {"name": "older", "uid": "j-0"}
        return raw

    made = cache(with_claim(pod(10)))
    job = made.jobs.items["ns", "job"]
    assert job.claim == "claim"
    assert made.world(job).claim_user.startswith("older (its pod job-1-0")
    made.put_pod(with_claim(ended_pod(1)))
    assert made.world(job).claim_user == ""
