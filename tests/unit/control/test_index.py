"""What the cache answers about all jobs at once is what going over all of them would give, whatever came before."""

import dataclasses
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spot_training.control.cache import Cache
from spot_training.control.index import JobIndex
from spot_training.control.ledger import Ledger
from spot_training.control.policies.fate import belongs
from spot_training.control.policies.needs import gpus_per_pod
from spot_training.control.supply import Supply
from spot_training.control.world import Job, Node, Reservation
from tests.unit.control.build import GPU, node, pool, shape
from tests.unit.control.objects import Json, raw_job, raw_pod

NAMES = ["one", "two", "three"]
NODES = ["a1", "a2", "a3"]
AT = "2026-04-08T05:00:00Z"


def raw_pool(name: str, version: int, resource: str = GPU) -> Json:
    spec = {"nodeSelector": {"pool": name}, "gpuResource": resource}
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}, "spec": spec}


@st.composite
def statuses(draw: st.DrawFn) -> Json:
    made: Json = {"phase": draw(st.sampled_from(["Pending"] * 5 + ["Failed"]))}
    if draw(st.integers(0, 3)):
        ranks = draw(st.lists(st.sampled_from(NODES), max_size=2))
        current: Json = {
            "attempt": draw(st.integers(1, 2)),
            "pool": draw(st.sampled_from(["a", "b"])),
            "openedAt": AT,
            "nodes": [{"index": index, "name": name, "uid": name} for index, name in enumerate(ranks)],
        }
        if current["pool"] == "a" and draw(st.booleans()):
            current["onDemand"] = {"ranks": [0], "pool": "b", "terms": {"capacityType": "OnDemand"}}
        if draw(st.integers(0, 3)) == 0:
            current["runningAt"] = AT
        if draw(st.integers(0, 3)) == 0:
            current["node"] = draw(st.sampled_from(NODES))
        if draw(st.integers(0, 3)) == 0:
            current["stop"] = {"cause": "Reclaimed", "at": AT}
        if draw(st.integers(0, 3)) == 0:
            current["end"] = {"class": "Disruption", "reason": "Reclaimed", "at": AT}
        made["current"] = current
    return made


@st.composite
def jobs(draw: st.DrawFn, name: str) -> Json:
    made = raw_job(name, draw(st.sampled_from([f"{name}-1", f"{name}-1", f"{name}-2"])), **draw(statuses()))
    made["metadata"]["creationTimestamp"] = f"2026-04-08T04:0{draw(st.integers(0, 2))}:00Z"
    made["spec"]["checkpoint"]["claimName"] = draw(st.sampled_from(["claim", "claim", "other"]))
    limits = {"limits": {GPU: draw(st.sampled_from(["1", "2"]))}}
    made["spec"]["template"]["spec"]["containers"][0]["resources"] = limits
    return made


@st.composite
def pods(draw: st.DrawFn) -> Json:
    job, attempt = draw(st.sampled_from(NAMES)), draw(st.integers(1, 2))
    name = f"{job}-{attempt}-{draw(st.integers(0, 1))}"
    made = raw_pod(
        name, f"{name}-{draw(st.integers(0, 1))}", phase=draw(st.sampled_from(["Pending", "Failed"]))
    )
    made["status"]["containerStatuses"] = []
    made["spec"]["nodeName"] = draw(st.sampled_from(["", "", *NODES]))
    made["metadata"]["labels"]["spot.training/attempt"] = str(attempt)
    made["metadata"]["labels"]["spot.training/index"] = name[-1]
    made["metadata"]["ownerReferences"][0] |= {"name": job, "uid": f"{job}-1"}
    return made


events = st.one_of(
    st.sampled_from(NAMES).flatmap(jobs).map(lambda raw: ("job", raw)),
    st.sampled_from(NAMES).flatmap(jobs).map(lambda raw: ("job", raw)),
    st.sampled_from(NAMES).map(lambda name: ("no job", name)),
    pods().map(lambda raw: ("pod", raw)),
    pods().map(lambda raw: ("pod", raw)),
    st.integers(0, 20).map(lambda pick: ("no pod", pick)),
    pods().map(lambda raw: ("unseen pod", raw)),
    st.integers(0, 20).map(lambda pick: ("bury", pick)),
    st.sampled_from(["a", "b"]).map(lambda name: ("no pool", name)),
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([GPU, "amd.com/gpu"])).map(
        lambda it: ("pool", it)
    ),
)


def happen(cache: Cache, live: dict[str, Json], version: int, event: str, what: Any) -> None:
    there = list(live.values())
    match event:
        case "job" | "pod":
            what["metadata"]["resourceVersion"] = str(version)
            if event == "job":
                cache.jobs.put(what)
            else:
                cache.put_pod(what)
                live[what["metadata"]["name"]] = what
        case "no job":
            gone = cache.jobs.drop(("ns", what))
            if gone is not None:
                cache.forget_job(gone.uid)
        case "no pod" if there:
            raw = live.pop(there[what % len(there)]["metadata"]["name"])
            raw["metadata"]["resourceVersion"] = str(version)
            cache.remove_pod(raw)
        case "unseen pod" if what["metadata"]["name"] not in live:
            what["metadata"]["resourceVersion"] = str(version)
            cache.remove_pod(what)
        case "bury" if there:
            name = there[what % len(there)]["metadata"]["name"]
            del live[name]
            cache.bury(cache.pods.items["ns", name])
        case "pool":
            cache.pools.put(raw_pool(what[0], version, what[1]))
        case "no pool":
            cache.pools.drop(what)
    for job in cache.jobs.items.values():
        cache.forget_tombstones(job)


def plain_waiting(cache: Cache) -> list[tuple[str, str]]:
    found = [job for job in cache.jobs.items.values() if not job.finished and not job.open_attempt]
    return [job.key for job in sorted(found, key=lambda job: (job.created, job.uid))]


def plain_jobs_on(cache: Cache, name: str) -> set[tuple[str, str]]:
    found = {
        (each.namespace, each.job)
        for each in cache.pods.items.values()
        if each.job_uid and each.node == name and not each.ended
    }
    for job in cache.jobs.items.values():
        current = job.status.current
        if current and job.open_attempt and any(ref.name == name for ref in current.nodes):
            found.add(job.key)
    return found


def plain_claim_users(cache: Cache, job: Job) -> list[str]:
    """Names of all jobs that have the job's claim, oldest first."""
    found = []
    for other in cache.jobs.items.values():
        same = other.namespace == job.namespace and other.uid != job.uid and other.claim == job.claim
        if not same or other.finished or other.status.current is None:
            continue
        first = job.status.current is None or (other.created, other.uid) < (job.created, job.uid)
        if other.open_attempt or first:
            found.append(other)
    return [other.name for other in sorted(found, key=lambda other: (other.created, other.uid))]


def plain_reservations(cache: Cache) -> Counter[tuple[str, int, str]]:
    found: Counter[tuple[str, int, str]] = Counter()
    for job in cache.jobs.items.values():
        current = job.status.current
        if job.finished or current is None or current.end or current.stop:
            continue
        for name in current.pools:
            ranks = [index for index in range(job.spec.replicas) if current.pool_of(index) == name]
            bound = sum(
                1
                for each in cache.pods_of(job.uid)
                if each.attempt == current.attempt
                and (each.node or each.ended)
                and current.pool_of(each.index) == name
            )
            if name in cache.pools.items and bound < len(ranks) and not current.running_at:
                each = gpus_per_pod(job.spec.template.spec, GPU)
                found[name, each, current.node or ""] += len(ranks) - bound
    return found


def counted(reservations: tuple[Reservation, ...]) -> Counter[tuple[str, int, str]]:
    kinds = {dataclasses.replace(each, pods=0) for each in reservations}
    assert len(kinds) == len(reservations)
    assert all(each.pods > 0 for each in reservations), reservations
    return Counter({(each.pool, each.shape.need(GPU), each.node): each.pods for each in reservations})


def plain_users(cache: Cache, name: str) -> list[str]:
    jobs = [job for job in cache.jobs.items.values() if job.open_attempt]
    return sorted(job.uid for job in jobs if job.status.current and name in job.status.current.pools)


@settings(max_examples=400)
@given(st.lists(events, max_size=40))
def test_the_answers_are_those_of_going_over_all_jobs(happening: list[tuple[str, Any]]) -> None:
    cache, live = Cache(), dict[str, Json]()
    for version, (event, what) in enumerate(happening, start=100):
        happen(cache, live, version, event, what)
        assert cache.waiting() == plain_waiting(cache)
        for name in NODES:
            assert cache.jobs_on(name) == plain_jobs_on(cache, name), name
        for claim in ("claim", "other"):
            named = [job.key for job in cache.jobs.items.values() if job.claim == claim]
            assert sorted(cache.with_claim(("ns", claim))) == sorted(named)
        assert counted(cache.reservations()) == plain_reservations(cache)
        for name in ("a", "b"):
            assert sorted(job.uid for job in cache.users(name)) == plain_users(cache, name)
        for job in cache.jobs.items.values():
            world, users = cache.world(job), plain_claim_users(cache, job)
            # The raw pods here mount no claim: only jobs can have one.
            assert world.claim_user == (users[0] if users else ""), job.name
    for job in list(cache.jobs.items.values()):
        cache.jobs.drop(job.key)
    assert vars(cache._index) == vars(JobIndex()), "something is left of jobs that are gone"
    assert cache.reservations() == ()


changes = st.tuples(
    st.sampled_from(NODES), st.sampled_from(["a", "b", "no pool", "gone"]), st.booleans(), st.booleans()
)


@given(st.lists(changes, max_size=30))
def test_silent_nodes_are_counted_as_going_over_all_of_them_would(
    happening: list[tuple[str, str, bool, bool]],
) -> None:
    supply, nodes = Supply(), dict[str, Node]()
    pools = {name: pool(name) for name in ("a", "b")}
    for each in pools.values():
        supply.put_pool(None, each)
    for name, where, ready, pool_moves in happening:
        before = nodes.pop(name, None)
        if where != "gone":
            nodes[name] = node(name, where, ready=ready)
        supply.put_node(before, nodes.get(name))
        if pool_moves:
            moved = pool("a", nodeSelector={"pool": where})
            supply.put_pool(pools["a"], moved)
            pools["a"] = moved
        silent = {
            key: sum(belongs(each, made) and not each.ready for each in nodes.values())
            for key, made in pools.items()
        }
        assert supply.silent == silent


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=4),
)
def test_reservations_are_packed_pod_by_pod_on_the_fullest_node_that_fits(
    capacities: list[int], wanted: list[tuple[int, int]]
) -> None:
    nodes = {f"a{index}": node(f"a{index}", gpus=gpus) for index, gpus in enumerate(capacities)}
    reservations = [Reservation("a", shape(size), count) for size, count in wanted]
    expected = {name: each.capacity[GPU] for name, each in nodes.items()}
    for size, count in sorted(wanted, key=lambda each: (-each[0], each[1])):
        for _ in range(count):
            fitting = [name for name, left in expected.items() if left >= size]
            if fitting and size:
                expected[min(fitting, key=lambda name: (expected[name], name))] -= size
    ledger = Ledger(Supply.of(nodes.values(), [pool("a")]), reservations)
    assert {name: ledger.free(name)[GPU] for name in nodes} == expected


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.sets(st.integers(0, 5))), max_size=8),
)
def test_what_is_given_in_any_order_is_packed_like_that_beside_nodes_to_keep_off(
    capacities: list[int], wanted: list[tuple[int, int, set[int]]]
) -> None:
    nodes = {f"a{index}": node(f"a{index}", gpus=gpus) for index, gpus in enumerate(capacities)}
    ledger = Ledger(Supply.of(nodes.values(), [pool("a")]))
    expected = {name: each.capacity[GPU] for name, each in nodes.items()}
    for size, count, numbers in wanted:
        avoid = {f"a{number}" for number in numbers}
        laid = set()
        for _ in range(count if size else 0):
            fitting = [name for name, left in expected.items() if left >= size and name not in avoid]
            if fitting:
                chosen = min(fitting, key=lambda name: (expected[name], name))
                expected[chosen] -= size
                laid.add(chosen)
        if size:
            assert set(ledger.take("a", shape(size), count, avoid)) == laid
        assert {name: ledger.free(name)[GPU] for name in nodes} == expected


@given(st.lists(st.tuples(st.sampled_from(NODES), st.integers(0, 5), st.booleans()), max_size=20))
def test_the_fullest_nodes_are_in_the_order_that_sorting_them_would_give(
    happening: list[tuple[str, int, bool]],
) -> None:
    supply = Supply.of([], [pool("a")])
    nodes: dict[str, Node] = {}
    used: Counter[str] = Counter()
    for name, gpus, ready in happening:
        before, nodes[name] = nodes.get(name), node(name, ready=ready)
        supply.put_node(before, nodes[name])
        if used[name]:
            supply.use(name, {GPU: used[name]}, -1, training=True)
        if gpus:
            supply.use(name, {GPU: gpus}, training=True)
        used[name] = gpus
        left = {each.name: each.capacity[GPU] - used[each.name] for each in nodes.values() if each.ready}
        expected = sorted((gpus, name) for name, gpus in left.items() if gpus >= 2)
        assert supply.fit("a", shape(2)).fullest == expected
