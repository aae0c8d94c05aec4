"""Who gets what, where, and why not: one decision for all jobs that wait."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot_training.api.pool import InterruptionCount, Interruptions, NodeCounts, SpotPoolStatus
from spot_training.api.times import format_second
from spot_training.control.policies.demand import Choice, Key, Request, Waiting
from spot_training.control.policies.fitting import room, room_beside, shape_of
from spot_training.control.policies.needs import amount, pod_needs
from spot_training.control.policies.placement import place
from spot_training.control.policies.score import score
from spot_training.control.supply import Supply
from spot_training.control.world import Node, Pool, Requirement, Reservation, Terms
from tests.unit.control.build import GPU, NOW, node, pool, reclaim, shape, spec, taint

ZONE = "topology.kubernetes.io/zone"


def in_zone(key: str, operator: str, *values: str) -> Terms:
    return ((Requirement(key, operator, values),),)


def waiting(
    name: str, replicas: int = 1, gpus: int = 4, priority: int = 0, age: float = 0, **fields: Any
) -> Waiting:
    """A job that waits; `fields` of its request, `template` of its pod spec."""
    made = spec(replicas, gpus, pools=[]).to_json()
    made["template"]["spec"] |= fields.pop("template", {})
    template = type(spec()).model_validate(made).template.spec
    request = Request(replicas, template, priority=priority, **fields)
    return Waiting(
        ("ns", name),
        f"{name}-uid",
        NOW - age,
        request,
        shape_of(template, request.volumes, request.together, request.ceiling),
    )


def nodes(count: int, in_pool: str = "a", gpus: int = 4, **fields: Any) -> list[Node]:
    return [node(f"{in_pool}{number}", in_pool, gpus, **fields) for number in range(count)]


def decide(*jobs: Waiting, supply: Supply, **more: Any) -> dict[str, Choice]:
    made = place(jobs, supply, more.get("reservations", ()), more.get("provisioning", {}), NOW)
    again = place(jobs[::-1], supply, more.get("reservations", ()), more.get("provisioning", {}), NOW)
    assert made == again, "the order of asking decides nothing, and nothing is left of a decision"
    return {name: choice for (_, name), choice in made.items()}


def pools_of(made: dict[str, Choice]) -> dict[str, str | None]:
    return {name: choice.pool for name, choice in made.items()}


# Order and fairness


def test_two_gangs_and_room_for_one_the_older_gets_it() -> None:
    supply = Supply.of(nodes(2), [pool("a")])
    made = decide(waiting("young", 2), waiting("old", 2, age=9), supply=supply)
    assert pools_of(made) == {"old": "a", "young": None}
    assert made["young"].reason == "NoCapacity"
    assert "2 pods of 4 nvidia.com/gpu do not fit: 0 free on 2 nodes, room for 0" in made["young"].message


def test_a_higher_priority_comes_before_age() -> None:
    supply = Supply.of(nodes(2), [pool("a")])
    made = decide(waiting("high", 2, priority=10), waiting("old", 2, age=9), supply=supply)
    assert pools_of(made) == {"high": "a", "old": None}


def test_small_jobs_do_not_starve_a_gang_that_waits() -> None:
    """One node of two is free. The gang holds it, until it has both."""
    supply = Supply.of(nodes(2), [pool("a")])
    supply.use("a0", {GPU: 4}, training=True)
    gang, small = waiting("gang", 2, age=9), waiting("small", gpus=1)
    made = decide(gang, small, supply=supply)
    assert pools_of(made) == {"gang": None, "small": None}
    assert made["small"].reason == "HeldForAnother"
    assert "kept for ns/gang, which is before this job" in made["small"].message
    supply.use("a0", {GPU: 4}, -1, training=True)
    assert pools_of(decide(gang, small, supply=supply)) == {"gang": "a", "small": None}


def test_beside_the_gang_that_waits_there_may_be_room_that_is_none_for_it() -> None:
    supply = Supply.of([*nodes(2), node("small", gpus=1)], [pool("a")])
    supply.use("a0", {GPU: 3}, training=True)
    made = decide(
        waiting("gang", 2, age=9), *(waiting(f"s{n}", gpus=1, age=n) for n in range(3)), supply=supply
    )
    assert pools_of(made) == {"gang": None, "s2": "a", "s1": None, "s0": None}, (
        "on `small`; a0 is to get empty"
    )


def rounds(supply: Supply, big: Waiting, small: dict[str, str], most: int, lives: Iterator[int]) -> int:
    """In which round the big one is placed, where in each a small job of one pod comes, and the oldest small ones end.

    `small`: where the small ones are, each on a GPU; `lives`: for how many rounds each that comes runs. As the
    scheduler would, each goes to the node that was counted on.
    """
    due = {name: number + 1 for number, name in enumerate(small)}
    for number in range(1, most + 1):
        for name in [name for name, end in due.items() if end == number]:
            supply.use(small.pop(name), {GPU: 1}, -1, training=True)
            del due[name]
        comes = waiting(f"s{number}", gpus=1, age=-number)
        made = decide(big, comes, supply=supply)
        if made[big.key[1]].pool is not None:
            return number
        if made[f"s{number}"].pool is not None:
            (on,) = made[f"s{number}"].laid
            small[f"s{number}"], due[f"s{number}"] = on, number + next(lives)
            supply.use(on, {GPU: 1}, training=True)
    raise AssertionError(f"{big.key} still waits after {most} rounds; small jobs: {small}")


def full_of_small_jobs(nodes: int, gpus: int) -> tuple[Supply, dict[str, str]]:
    supply = Supply.of([node(f"a{number}", gpus=gpus) for number in range(nodes)], [pool("a")])
    small = {f"first{number}": f"a{number % nodes}" for number in range(nodes * gpus)}
    for on in small.values():
        supply.use(on, {GPU: 1}, training=True)
    return supply, small


@pytest.mark.parametrize(("nodes", "replicas"), [(1, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize("priority", [0, 1000])
def test_a_gang_that_needs_whole_nodes_gets_them_however_many_small_jobs_come(
    nodes: int, replicas: int, priority: int
) -> None:
    supply, small = full_of_small_jobs(nodes, 8)
    big = waiting("big", replicas, 8, priority=priority, age=99)
    assert rounds(supply, big, small, 1000, itertools.repeat(8 * nodes)) <= 8 * nodes + 8


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 20), min_size=1, max_size=9),
    st.sampled_from([(1, 4), (2, 4), (3, 2), (1, 3), (5, 1), (4, 2)]),
)
def test_a_gang_that_fits_if_all_training_ends_is_placed_in_the_end(
    nodes: int, lives: list[int], gang: tuple[int, int]
) -> None:
    replicas, gpus = gang
    supply, small = full_of_small_jobs(nodes, 4)
    if supply.fit("a", shape(gpus)).ever >= replicas:
        # Nobody waits longer than for each of the running jobs in turn.
        rounds(supply, waiting("big", replicas, gpus, age=99), small, 21 * 4 * nodes, itertools.cycle(lives))


def test_what_a_waiting_gang_does_not_need_is_not_idle() -> None:
    """The node that lacks least is kept, its free GPUs too; all others are for whoever comes."""
    supply, _ = full_of_small_jobs(3, 8)
    supply.use("a1", {GPU: 2}, -1, training=True)
    supply.use("a2", {GPU: 1}, -1, training=True)
    jobs = [waiting(f"s{number}", gpus=1, age=number) for number in range(2)]
    made = decide(waiting("big", gpus=8, age=9), *jobs, supply=supply)
    assert [made[name].laid for name in ("big", "s1", "s0")] == [(), ("a2",), ()]
    assert made["s0"].reason == "HeldForAnother"
    assert decide(*jobs, supply=supply)["s0"].laid == ("a1",), "once the big one is gone"


def test_beside_a_gang_that_needs_half_a_node_the_other_half_is_given_away() -> None:
    supply = Supply.of([node("a0", gpus=8), node("a1", gpus=8)], [pool("a")])
    supply.use("a1", {GPU: 8}, training=True)
    gang, small = waiting("gang", 3, 4, age=9), waiting("small", gpus=2)
    assert pools_of(decide(gang, small, supply=supply)) == {"gang": None, "small": None}, (
        "a0 for two, half of a1"
    )
    supply.use("a1", {GPU: 2}, -1, training=True)
    assert pools_of(decide(gang, small, supply=supply)) == {"gang": None, "small": None}, (
        "that half gets free"
    )
    supply.use("a0", {GPU: 1}, training=True)
    supply.use("a1", {GPU: 4}, -1, training=True)
    made = decide(gang, small, supply=supply)
    assert (made["gang"].pool, made["small"].laid) == (None, ("a1",)), "a0 lacks one GPU, a1 has two to spare"
    supply.use("a0", {GPU: 1}, -1, training=True)
    made = decide(gang, small, supply=supply)
    assert (made["gang"].pool, made["small"].laid) == ("a", ("a1",))


def test_what_needs_nothing_of_what_is_held_is_not_kept_waiting() -> None:
    roomy = node("a0", capacity={GPU: 4, "cpu": 8000})
    supply = Supply.of([roomy], [pool("a")])
    supply.use("a0", {GPU: 1, "cpu": 1000}, training=True)
    asks = {"limits": {GPU: 4}, "requests": {"cpu": 4}}
    big = waiting("big", age=9, template={"containers": [{"name": "m", "image": "i", "resources": asks}]})
    for cpus, fits in ((3, True), (4, False)):
        bare = {"name": "m", "image": "i", "resources": {"requests": {"cpu": cpus}}}
        made = decide(big, waiting("cpus", template={"containers": [bare]}), supply=supply)
        assert (made["big"].pool, made["cpus"].pool is not None) == (None, fits), cpus


def test_a_gang_that_would_never_fit_holds_nothing() -> None:
    supply = Supply.of(nodes(2), [pool("a")])
    made = decide(waiting("huge", 3, age=9), waiting("small"), supply=supply)
    assert pools_of(made) == {"huge": None, "small": "a"}
    assert made["huge"].reason == "GangTooLarge"
    assert "room for 2, and for 2 if the nodes were empty" in made["huge"].message


@pytest.mark.parametrize(
    "state",
    [
        {"ready": False, "taints": (taint("node.kubernetes.io/unreachable", effect="NoExecute"),)},
        {"schedulable": False, "taints": (taint("node.kubernetes.io/unschedulable"),)},
        {"notice": reclaim(), "taints": (taint("spot.training/reclaim", value="terminate"),)},
        {"notice": reclaim(None), "taints": (taint("karpenter.sh/disrupted"),)},
        {"taints": (taint("node.kubernetes.io/disk-pressure"),)},
    ],
)
def test_a_gang_is_not_too_large_for_a_pool_of_which_a_node_is_out_for_now(state: dict[str, Any]) -> None:
    supply = Supply.of([node("a0"), node("a1", **state)], [pool("a")])
    made = decide(waiting("gang", 2, age=9), waiting("small"), supply=supply)
    assert made["gang"].reason == "NoCapacity"
    assert made["small"].pool == "a", "nobody knows when the other node is back"
    out = "1 of its nodes are not ready, cordoned or have a notice" in made["gang"].message
    assert out is (len(state) > 1), made["gang"].message
    assert decide(waiting("three", 3), supply=supply)["three"].reason == "GangTooLarge"


def test_a_node_that_is_out_and_would_never_take_the_gang_does_not_count() -> None:
    other = node("a1", ready=False, taints=(taint("others"), taint("node.kubernetes.io/not-ready")))
    supply = Supply.of([node("a0"), other], [pool("a")])
    assert decide(waiting("gang", 2), supply=supply)["gang"].reason == "GangTooLarge"


def test_what_ordinary_pods_use_is_not_waited_for() -> None:
    supply = Supply.of(nodes(2), [pool("a")], {("a0", GPU): 1})
    made = decide(waiting("gang", 2, age=9), waiting("small"), supply=supply)
    assert pools_of(made) == {"gang": None, "small": "a"}
    assert made["gang"].reason == "NoCapacity"


def test_a_gang_holds_one_pool_the_one_where_least_is_missing() -> None:
    supply = Supply.of([*nodes(3), *nodes(3, "b")], [pool("a"), pool("b")])
    for name in ("a0", "a1", "b0"):
        supply.use(name, {GPU: 4}, training=True)
    made = decide(waiting("gang", 3, age=9), waiting("one"), waiting("two", age=1), supply=supply)
    assert pools_of(made) == {"gang": None, "two": "a", "one": None}, "b is held for the gang, a is not"


def test_another_pool_of_the_same_nodes_is_no_way_around_a_hold() -> None:
    overlapping = Pool("b", pool("a").spec)
    supply = Supply.of(nodes(2), [pool("a"), overlapping])
    supply.use("a0", {GPU: 4}, training=True)
    made = decide(waiting("gang", 2, age=9, pools=["a"]), waiting("small", pools=["b"]), supply=supply)
    assert pools_of(made) == {"gang": None, "small": None}


# What fits


def test_reservations_of_attempts_that_start_are_taken() -> None:
    supply = Supply.of(nodes(2), [pool("a")])
    held = (Reservation("a", shape(4), 1),)
    assert pools_of(decide(waiting("gang", 2), supply=supply, reservations=held)) == {"gang": None}
    assert pools_of(decide(waiting("one"), supply=supply, reservations=held)) == {"one": "a"}


def in_zone_b(**fields: Any) -> Waiting:
    return waiting("zonal", volumes=(in_zone(ZONE, "In", "b"),), **fields)


def test_what_is_reserved_is_where_its_volumes_are() -> None:
    zones = [
        node("x0", "a", labels={"pool": "a", ZONE: "x"}),
        node("y0", "a", labels={"pool": "a", ZONE: "b"}),
    ]
    supply, held = Supply.of(zones, [pool("a")]), Reservation("a", in_zone_b().shape, 1)
    made = decide(in_zone_b(), waiting("other"), supply=supply, reservations=(held,))
    assert pools_of(made) == {"zonal": None, "other": "a"}
    anywhere = Reservation("a", shape(4), 1)
    full = decide(waiting("other"), supply=supply, reservations=(anywhere, held))
    assert pools_of(full) == {"other": None}, "what can be anywhere leaves the zone to what cannot"


def test_what_is_reserved_is_on_no_node_that_it_keeps_off() -> None:
    supply, held = Supply.of(nodes(2), [pool("a")]), Reservation("a", shape(4), 1, avoid=frozenset({"a0"}))
    made = decide(waiting("job", avoid=frozenset({"a1"})), supply=supply, reservations=(held,))["job"]
    assert (made.pool, made.anywhere) == ("a", False), "a0 is free"
    other = waiting("job", avoid=frozenset({"a0"}))
    assert decide(other, supply=supply, reservations=(held,))["job"].anywhere, "a1 is not"


def test_the_nodes_that_were_counted_on_are_told_those_with_least_room_first() -> None:
    supply = Supply.of([node(f"a{number}", gpus=8) for number in range(3)], [pool("a")])
    supply.use("a2", {GPU: 4}, training=True)
    jobs = [waiting("four", age=3), waiting("eight", gpus=8, age=2), waiting("two", 2, age=1)]
    made = decide(*jobs, supply=supply)
    assert {name: choice.laid for name, choice in made.items()} == {
        "four": ("a2",),
        "eight": ("a0",),
        "two": ("a1",),
    }
    wide = decide(waiting("wide", 5), supply=supply)["wide"]
    assert wide.laid == ("a2", "a0", "a1")


def test_fragments_are_no_room() -> None:
    supply = Supply.of(nodes(4), [pool("a")])
    for number in range(4):
        supply.use(f"a{number}", {GPU: 1}, training=False)
    made = decide(waiting("whole"), supply=supply)
    assert "12 free on 4 nodes, room for 0" in made["whole"].message


def test_cpu_and_memory_count_where_the_template_asks_for_them() -> None:
    full = {GPU: 4, "cpu": 8000, "memory": 64 << 30, "pods": 110}
    supply = Supply.of([node("a0", capacity=full)], [pool("a")])
    container = {"name": "m", "image": "i", "resources": {"limits": {GPU: 1}, "requests": {"cpu": 3}}}
    assert pools_of(decide(waiting("two", 2, template={"containers": [container]}), supply=supply)) == {
        "two": "a"
    }
    made = decide(waiting("three", 3, template={"containers": [container]}), supply=supply)
    assert "room for 2" in made["three"].message
    supply.use("a0", {"pods": 109}, training=False)
    made = decide(waiting("two", 2, template={"containers": [container]}), supply=supply)
    assert "room for 1" in made["two"].message, "a node takes so many pods and no more"


@pytest.mark.parametrize(
    ("template", "fits"),
    [
        ({"nodeSelector": {"zone": "z0"}}, True),
        ({"nodeSelector": {"zone": "z9"}}, False),
        ({"tolerations": [{"key": "gpu", "operator": "Exists"}]}, True),
    ],
)
def test_selectors_and_tolerations(template: dict[str, Any], fits: bool) -> None:
    zone = {"pool": "a", "zone": "z0"}
    taints = (taint("gpu"),) if "tolerations" in template else ()
    supply = Supply.of([node("a0", labels=zone, taints=taints)], [pool("a")])
    assert (decide(waiting("job", template=template), supply=supply)["job"].pool is not None) is fits


@pytest.mark.parametrize(
    ("operator", "value", "of_taint", "fits"),
    [
        ("Lt", "5", "3", True),
        ("Lt", "5", "5", False),
        ("Lt", "5", "7", False),
        ("Gt", "5", "7", True),
        ("Gt", "5", "5", False),
        ("Gt", "-5", "-3", True),
        ("Lt", "5", "low", False),
        ("Gt", "", "7", False),
        ("Equal", "5", "5", True),
        (None, "5", "5", True),
        (None, "5", "7", False),
    ],
)
@pytest.mark.parametrize("of_pool", [True, False])
def test_tolerations_that_compare_numbers(
    operator: str | None, value: str, of_taint: str, fits: bool, of_pool: bool
) -> None:
    toleration = {"key": "failures", "operator": operator, "value": value, "effect": "NoSchedule"}
    said = [{key: each for key, each in toleration.items() if each is not None}]
    made = pool("a", tolerations=said) if of_pool else pool("a")
    template = {} if of_pool else {"tolerations": said}
    supply = Supply.of([node("a0", taints=(taint("failures", value=of_taint),))], [made])
    assert (decide(waiting("job", template=template), supply=supply)["job"].pool is not None) is fits


def test_required_node_affinity() -> None:
    def affinity(operator: str, *values: str) -> dict[str, Any]:
        term = {"matchExpressions": [{"key": "zone", "operator": operator, "values": list(values)}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        return {"affinity": {"nodeAffinity": required}}

    supply = Supply.of([node("a0", labels={"pool": "a", "zone": "z0"})], [pool("a")])
    assert decide(waiting("job", template=affinity("In", "z0")), supply=supply)["job"].pool == "a"
    made = decide(waiting("job", template=affinity("NotIn", "z0")), supply=supply)["job"]
    assert "nodeAffinity" in made.message


@pytest.mark.parametrize(
    ("resource", "quantity", "whole"),
    [
        ("cpu", "500m", 500),
        ("cpu", 2, 2000),
        ("cpu", "0.1", 100),
        ("memory", "1Gi", 1 << 30),
        ("memory", "1.5Ki", 1536),
        ("memory", "2e3", 2000),
        ("memory", "1G", 10**9),
        (GPU, "1k", 1000),
        (GPU, "four", 0),
        ("memory", "100m", 1),
    ],
)
def test_quantities(resource: str, quantity: int | str, whole: int) -> None:
    assert amount(resource, quantity) == whole


def test_what_a_pod_needs_counts_init_containers_sidecars_and_overhead() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    made = pod_needs(
        {
            "initContainers": [container("1", restartPolicy="Always"), container("5")],
            "containers": [container("2"), {"resources": {"limits": {"cpu": "1", GPU: "2"}}}],
            "overhead": {"cpu": "250m"},
        }
    )
    assert made == {"cpu": 6250, GPU: 2}, "the second init container runs beside the sidecar: 6 > 1 + 2 + 1"


@given(
    free=st.dictionaries(st.sampled_from([GPU, "cpu"]), st.integers(0, 40), min_size=2),
    mine=st.integers(0, 5),
    its=st.integers(1, 8),
    cpu=st.integers(0, 3),
)
def test_room_beside_leaves_the_other_all_its_room(
    free: dict[str, int], mine: int, its: int, cpu: int
) -> None:
    one, other = shape(mine, cpu=cpu), shape(its, cpu=2)
    count = room_beside(free, one, other, room(free, other))

    def after(pods: int) -> dict[str, int]:
        return {key: left - one.need(key) * pods for key, left in free.items()}

    if count < 1000:
        assert room(after(count), other) == room(free, other) or count == 0
        more = after(count + 1)
        assert min(more.values()) < 0 or room(more, other) < room(free, other)


# Which pool


def test_the_score_weighs_price_and_interruptions() -> None:
    risky = SpotPoolStatus(
        nodes=NodeCounts(total=4),
        interruptions=Interruptions(events="9", node_hours="0", as_of=format_second(NOW)),
    )
    cheap = Pool("a", pool("a", pricePerNodeHour="2.00").spec, status=risky)
    supply = Supply.of([*nodes(2), *nodes(2, "b")], [cheap, pool("b", pricePerNodeHour="2.20")])
    made = decide(waiting("job"), supply=supply)["job"]
    assert made.pool == "b", "0.92 interruptions an hour cost more than 10 %"
    assert made.chosen.startswith("pool b; score 0.5")
    assert "after it: a (score 0.6" in made.chosen


def test_of_pools_that_cost_alike_the_fuller_one() -> None:
    supply = Supply.of([*nodes(4), *nodes(4, "b")], [pool("a"), pool("b")])
    supply.use("b0", {GPU: 4}, training=True)
    assert decide(waiting("job"), supply=supply)["job"].pool == "b"


def test_a_pool_whose_price_nobody_said_comes_last() -> None:
    supply = Supply.of([*nodes(1), *nodes(1, "b")], [pool("a"), pool("b", pricePerNodeHour="99.00")])
    assert decide(waiting("job"), supply=supply)["job"].pool == "b"


def test_the_users_order_is_not_overruled_by_the_score_but_by_a_cool_down() -> None:
    priced = [pool("a", pricePerNodeHour="9.00"), pool("b", pricePerNodeHour="1.00")]
    supply = Supply.of([*nodes(1), *nodes(1, "b")], priced)
    assert decide(waiting("job", pools=["a", "b"]), supply=supply)["job"].pool == "a"
    cooled = waiting("job", pools=["a", "b"], last=frozenset({"a"}))
    assert decide(cooled, supply=supply)["job"].pool == "b"


def test_the_formula() -> None:
    assert score(2.0, 0.0, 3600, 0.0) == 2.0
    assert score(2.0, 0.1, 3600, 0.0) == pytest.approx(2.0 * (1 + 0.1 * 0.55))
    assert score(2.0, 0.0, 3600, 1.0) == pytest.approx(2.04)


def test_an_open_breaker_bars_the_pool_until_it_closes() -> None:
    taken = Interruptions(recent=[InterruptionCount(at=format_second(NOW - 600), count=3)])
    limited = pool("a", maxInterruptionsPerHour=2)
    supply = Supply.of(nodes(1), [Pool("a", limited.spec, status=SpotPoolStatus(interruptions=taken))])
    made = decide(waiting("job"), supply=supply)["job"]
    assert (made.pool, made.reason, made.wake_at) == (None, "BreakerOpen", NOW - 600 + 3660)
    assert "breaker open until" in made.message
    assert "more than 2 interruptions in an hour" in made.message


def test_refused_pools_are_passed_over_with_their_reason() -> None:
    supply = Supply.of([*nodes(1), *nodes(1, "b")], [pool("a"), pool("b")])
    refused = {"a": ("PoolAvoided", "avoided until noon: no driver")}
    made = decide(waiting("job", pools=["a", "b"], refused=refused), supply=supply)["job"]
    assert (made.pool, made.message) == ("b", "a: avoided until noon: no driver")


# Pools whose nodes can never suit


def zonal(name: str, **fields: Any) -> Pool:
    return pool(name, nodeSelector={ZONE: name}, **fields)


def required(*terms: dict[str, Any]) -> dict[str, Any]:
    said = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": said}}


@pytest.mark.parametrize("provisioning", ["Static", "Autoscaled"])
@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"volumes": (in_zone(ZONE, "In", "zb"),)}, f"attached only where {ZONE} In [zb]"),
        (
            {"volumes": (in_zone("topology.gke.io/zone", "In", "zb"),)},
            "topology.gke.io/zone: za, and the job's volumes",
        ),
        ({"volumes": (in_zone(ZONE, "NotIn", "za"),)}, f"{ZONE} NotIn [za]"),
        (
            {"template": {"nodeSelector": {ZONE: "zb"}}},
            f"its nodeSelector asks for {ZONE}: za, and the template's for {ZONE}: zb",
        ),
        (
            {"template": required({"matchExpressions": [{"key": ZONE, "operator": "DoesNotExist"}]}, {})},
            f"the template's nodeAffinity asks for {ZONE} DoesNotExist",
        ),
    ],
)
def test_a_pool_that_contradicts_the_job_is_refused_and_another_taken(
    provisioning: str, queued: bool, fields: dict[str, Any], says: str
) -> None:
    pools = [zonal("za", provisioning=provisioning), zonal("zb", provisioning=provisioning)]
    labelled = [node(name, labels={ZONE: name, "topology.gke.io/zone": name}) for name in ("za", "zb")]
    supply = Supply.of(labelled if provisioning == "Static" else [], pools)
    fields = fields | {"queued": queued}
    made = decide(waiting("job", pools=["za"], **fields), supply=supply)["job"]
    assert (made.pool, made.reason) == (None, "SelectorConflict")
    assert says in made.message
    if "DoesNotExist" not in says:
        either = decide(waiting("job", pools=["za", "zb"], **fields), supply=supply)["job"]
        assert (either.pool, [each.reason for each in either.refused.values()]) == (
            "zb",
            ["SelectorConflict"],
        )


def test_what_the_pools_selector_does_not_say_may_be_anything() -> None:
    supply = Supply.of([], [pool("a", provisioning="Autoscaled")])
    for fields in (
        {"volumes": (in_zone(ZONE, "In", "zb"),)},
        {"template": {"nodeSelector": {ZONE: "zb"}}},
        {"volumes": ((*in_zone(ZONE, "In", "zb"), *in_zone("pool", "In", "b")),)},
        {
            "template": required(
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}
            )
        },
    ):
        made = decide(waiting("job", **fields), supply=supply)["job"]
        assert made.pool == "a", (fields, made.message)


def test_the_templates_own_selector_may_contradict_its_volumes_in_any_pool() -> None:
    supply = Supply.of([], [pool("a", provisioning="Autoscaled")])
    made = waiting("job", template={"nodeSelector": {ZONE: "zb"}}, volumes=(in_zone(ZONE, "In", "za"),))
    assert decide(made, supply=supply)["job"].reason == "SelectorConflict"


# Autoscaled pools


def test_an_autoscaled_pool_needs_no_free_node() -> None:
    supply = Supply.of([], [pool("a", provisioning="Autoscaled")])
    made = decide(waiting("job", 8), supply=supply)["job"]
    assert (made.pool, made.provisioned, made.laid) == ("a", ("a",), ())
    assert "made for the autoscaler to see" in made.chosen


def test_room_that_is_there_comes_before_nodes_that_must_be_made() -> None:
    pools = [
        pool("a", provisioning="Autoscaled", pricePerNodeHour="1.00"),
        pool("b", pricePerNodeHour="9.00"),
    ]
    supply = Supply.of(nodes(1, "b"), pools)
    assert decide(waiting("job"), supply=supply)["job"].pool == "b"
    listed = decide(waiting("job", pools=["a", "b"]), supply=supply)["job"]
    assert (listed.pool, listed.provisioned) == ("a", ("a",)), "the user's order is the user's"


def test_so_many_gangs_wait_for_an_autoscaler_and_no_more() -> None:
    jobs = [waiting(f"j{number}", pools=["a", "b"], age=9 - number) for number in range(6)]
    for fields, most in (({}, 4), ({"maxProvisioningGangs": 2}, 2)):
        pools = [pool("a", provisioning="Autoscaled", **fields), pool("b")]
        made = decide(*jobs, supply=Supply.of(nodes(1, "b"), pools), provisioning={"a": 1})
        chosen = ["a"] * (most - 1) + ["b"]
        assert [made[f"j{number}"].pool for number in range(6)] == chosen + [None] * (6 - most)
        assert f"{most} gangs wait for nodes of its autoscaler already" in made["j5"].message


def test_gangs_that_start_on_free_nodes_wait_for_no_autoscaler() -> None:
    supply = Supply.of(nodes(5), [pool("a", provisioning="Autoscaled", maxProvisioningGangs=1)])
    made = decide(*(waiting(f"j{number}", age=9 - number) for number in range(7)), supply=supply)
    assert [made[f"j{number}"].provisioned for number in range(7)] == [()] * 5 + [("a",), ()]
    assert made["j6"].pool is None


# Whatever comes


Uses = list[tuple[str, int, bool]]
Drawn = tuple[Supply, list[Waiting], list[Reservation], Uses]


@st.composite
def scenes(draw: st.DrawFn) -> Drawn:
    """Three pools, two of which may share nodes; jobs of all sizes; use; reservations."""
    overlap = draw(st.booleans())
    pools = [pool("a"), pool("b"), Pool("c", pool("a" if overlap else "c").spec)]
    supply, uses = Supply.of([], pools), Uses()
    for number in range(draw(st.integers(1, 6))):
        supply.put_node(None, node(f"n{number}", draw(st.sampled_from("abc")), draw(st.integers(0, 8))))
        uses.append((f"n{number}", draw(st.integers(0, 8)), draw(st.booleans())))
        use(supply, *uses[-1])
    chosen = st.lists(st.sampled_from("abc"), max_size=3, unique=True)
    jobs = [
        waiting(
            f"j{number}",
            draw(st.integers(1, 4)),
            draw(st.integers(1, 4)),
            draw(st.sampled_from([0, 0, 5])),
            draw(st.integers(0, 3)),
            pools=draw(chosen),
            one_node=draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 7)))
    ]
    kinds = st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3))
    held = [Reservation(name, shape(size), pods) for name, size, pods in draw(st.lists(kinds, max_size=2))]
    return supply, jobs, held, uses


def use(supply: Supply, name: str, gpus: int, training: bool) -> None:
    supply.use(name, {GPU: gpus}, training=training)


def packs(sizes: list[tuple[int, frozenset[str]]], free: dict[str, int]) -> bool:
    """Whether pods of these sizes all find a node of those that each may go to. By trying."""
    if not sizes:
        return True
    (size, allowed), *rest = sizes
    tried = set()
    for name in sorted(allowed):
        if free[name] >= size and (free[name], name) not in tried:
            tried.add((free[name], name))
            if packs(rest, free | {name: free[name] - size}):
                return True
    return False


@settings(max_examples=150)
@given(scenes())
def test_no_two_jobs_are_given_the_same_gpus(scene: Drawn) -> None:
    supply, jobs, _, _ = scene
    made = place(jobs, supply, (), {}, NOW)
    free = {name: supply.free(each)[GPU] for name, each in supply.nodes.items()}
    sizes = []
    for job in jobs:
        choice = made[job.key]
        if choice.pool is not None:
            where = frozenset({choice.node} if choice.node else supply.members(choice.pool))
            sizes += [(job.shape.need(GPU), where)] * job.pods
    assert packs(sorted(sizes, key=lambda each: -each[0]), free), (made, free)


@settings(max_examples=150)
@given(scenes())
def test_the_first_in_order_is_never_kept_waiting_by_those_behind(scene: Drawn) -> None:
    supply, jobs, held, _ = scene
    made = place(jobs, supply, held, {}, NOW)
    ordered = sorted(jobs, key=lambda job: job.order)
    for count in range(1, len(ordered)):
        before: dict[Key, Choice] = place(ordered[:count], supply, held, {}, NOW)
        for job in ordered[:count]:
            assert before[job.key].pool == made[job.key].pool, "those behind change nothing for those before"


@settings(max_examples=100)
@given(
    scenes(),
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["moves", "goes", "used"]), st.integers(0, 4)),
        max_size=8,
    ),
)
def test_counts_kept_up_to_date_are_those_of_counting_anew(
    scene: Drawn, changes: list[tuple[int, str, int]]
) -> None:
    supply, jobs, held, uses = scene
    place(jobs, supply, held, {}, NOW)
    for number, what, size in changes:
        name = f"n{number}"
        known = supply.nodes.get(name)
        if known is None:
            supply.put_node(None, node(name, gpus=size))
        elif what == "moves":
            supply.put_node(known, node(name, "abc"[size % 3], known.capacity[GPU]))
        elif what == "goes":
            supply.put_node(known, None)
        else:
            uses.append((name, size, size % 2 == 0))
            use(supply, *uses[-1])
    fresh = Supply.of(supply.nodes.values(), supply.pools.values())
    for each in uses:
        use(fresh, *each)
    assert place(jobs, supply, held, {}, NOW) == place(jobs, fresh, held, {}, NOW)
