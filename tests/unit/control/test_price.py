"""What a machine costs: who is believed, what is too dear, and what is wrong with what was written."""

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from spot_training.control import pods as manifests
from spot_training.control.policies.price import (
    MAX_AVOIDED,
    dearer_nodes,
    node_price,
    pool_price,
    read_price,
    read_price_file,
    too_dear,
    write_amount,
)
from spot_training.control.read import read_node
from spot_training.control.supply import Supply
from tests.unit.control.build import Scene, node, pool, spec
from tests.unit.control.objects import raw_node

ANNOTATION = "spot.training/price-per-node-hour"


@pytest.mark.parametrize("text", ["", "1,20", "1.20 USD", "$3", "-1", "1e3", "0.1234567", ".5", "9" * 10])
def test_what_is_no_price_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a decimal number without a currency, such as '1\.20'"):
        read_price(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"),
        ("1.2", "1.20"),
        ("1E+3", "1000.00"),
        ("0.1234565", "0.123456"),
        ("12345678901.5", "999999999.999999"),
    ],
)
def test_amounts_are_written_as_the_status_can_hold_them(amount: str, text: str) -> None:
    assert write_amount(Decimal(amount)) == text
    assert read_price(text) >= 0


def test_an_annotation_comes_before_the_price_file_which_comes_before_the_pool() -> None:
    here = pool("a", pricePerNodeHour="3.00")
    prices = {"a": Decimal("2.00")}
    assert node_price(node("a1", price=Decimal("1.00")), here, prices) == 1
    assert node_price(node("a1"), here, prices) == 2
    assert node_price(node("a1"), here, {}) == 3
    assert node_price(node("a1"), pool("a"), {}) is None


def test_a_pool_costs_what_its_nodes_cost_on_an_average() -> None:
    unsaid, said = pool("a"), pool("b", pricePerNodeHour="3.00")
    members = [node("a1", price=Decimal("1.00")), node("a2"), node("b1", "b"), node("b2", "b")]
    supply = Supply.of(members, [unsaid, said])
    assert (supply.price("a"), supply.price("b")) == (Decimal(1), Decimal(3))
    supply.put_node(members[2], dataclasses.replace(members[2], price=Decimal("1.00")))
    assert supply.price("b") == 2
    supply.put_prices({"b": Decimal("5.00")})
    assert supply.price("b") == 3
    supply.put_node(members[0], None)
    assert supply.price("a") is None


def test_a_pool_that_only_its_nodes_give_a_price_is_chosen_by_it() -> None:
    scene = Scene(spec(pools=[]))
    scene.pools = {"a": pool("a", pricePerNodeHour="2.00"), "b": pool("b")}
    for name in ("b1", "b2"):
        scene.on_node(name, price=Decimal("1.00"))
    scene.run()
    assert scene.current.pool == "b"


def test_an_on_demand_pool_costs_what_it_costs_on_demand() -> None:
    both: dict[str, Any] = {"capacityType": "OnDemand", "onDemandPricePerNodeHour": "4.00"}
    assert pool_price(pool("b", **both), {}) == 4
    assert pool_price(pool("b", **both, pricePerNodeHour="3.00"), {}) == 3
    assert pool_price(pool("a", onDemandPricePerNodeHour="4.00"), {}) is None


def test_a_node_tells_its_price_or_what_is_wrong_with_it() -> None:
    assert read_node(raw_node(annotations={ANNOTATION: "1.20"})).price == Decimal("1.20")
    bad = read_node(raw_node(annotations={ANNOTATION: "cheap"}))
    assert bad.price is None
    assert bad.price_trouble.startswith(f"{ANNOTATION}: 'cheap' is no price")


def test_the_price_file_is_read_entry_by_entry() -> None:
    prices, troubles = read_price_file({"a": "1.20\n", "b": "free", "c": "4"})
    assert prices == {"a": Decimal("1.20"), "c": Decimal(4)}
    assert list(troubles) == ["b"]


def test_without_a_ceiling_nothing_is_too_dear_and_with_one_the_unknown_is() -> None:
    assert too_dear(None, None) is None
    assert too_dear(Decimal(2), Decimal(2)) is None
    assert "is more than maxPricePerNodeHour, 1" in (too_dear(Decimal(2), Decimal(1)) or "")
    assert "set pricePerNodeHour" in (too_dear(None, Decimal(1)) or "")


# What a job with a limit does


def priced(**fields: Any) -> Scene:
    """Two pools, at 2.00 and 1.00."""
    scene = Scene(spec(**fields))
    scene.pools = {"a": pool("a", pricePerNodeHour="2.00"), "b": pool("b", pricePerNodeHour="1.00")}
    return scene


def test_a_dearer_pool_is_passed_over_and_the_condition_says_so() -> None:
    scene = priced(maxPricePerNodeHour="1.50")
    scene.step()
    assert scene.current.pool == "b"
    assert "a: 2.00 for a node hour is more than" in scene.condition("CapacityAvailable").message


def test_where_all_are_too_dear_the_job_waits_and_goes_on_when_one_is_not() -> None:
    scene = priced(maxPricePerNodeHour="0.50")
    scene.step()
    assert scene.why() == ("False", "TooDear")
    assert scene.status.current is None
    scene.prices = {"a": Decimal("0.40")}
    scene.step(30)
    assert scene.current.pool == "a"


def test_a_cheap_node_of_a_dear_pool_is_used_and_dear_ones_are_kept_off() -> None:
    scene = priced(maxPricePerNodeHour="1.50", pools=["a"])
    scene.on_node("a1", price=Decimal("1.40"))
    (create,) = scene.step()
    assert scene.current.pool == "a"
    assert getattr(create, "avoid", None) == ("a2",)
    made = manifests.pod(scene.job, 1, 0, scene.pools["a"], scene.current, None, ("a2",))
    required = made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    field = {"key": "metadata.name", "operator": "NotIn", "values": ["a2"]}
    assert required["nodeSelectorTerms"] == [{"matchFields": [field]}]


def test_a_node_that_became_dear_on_the_way_there_is_given_back_before_anything_starts() -> None:
    scene = priced(maxPricePerNodeHour="2.00", pools=["a"])
    scene.run()
    scene.on_node(scene.pod().node, price=Decimal("2.10"))
    scene.step()
    assert (scene.stop.cause, scene.stop.cls) == ("TooDear", "NotStarted")
    assert "2.10 for a node hour" in scene.stop.message


def test_a_machine_that_runs_is_not_given_back_when_prices_rise() -> None:
    scene = priced(maxPricePerNodeHour="2.00", pools=["a"]).started()
    scene.prices = {"a": Decimal("9.00")}
    scene.on_node(scene.pod().node, price=Decimal("9.00"))
    scene.step(60)
    assert scene.current.stop is None
    assert scene.current.nodes[0].price == "2.00"


def test_a_bad_annotation_is_told_once_and_the_pools_price_is_taken() -> None:
    scene = priced(pools=["a"])
    scene.on_node("a1", price_trouble="spot.training/price-per-node-hour: 'x' is no price")
    scene.run()
    scene.step()
    assert scene.current.nodes[0].price == "2.00"
    assert [story.reason for story in scene.plan.stories] == ["PriceInvalid"]
    scene.step(1)
    assert not scene.plan.stories


def test_only_so_many_nodes_are_named_in_an_affinity() -> None:
    scene = priced(maxPricePerNodeHour="1.50", pools=["a"])
    for index in range(100):
        scene.nodes[f"dear{index}"] = node(f"dear{index}", "a")
    scene.on_node("a1", price=Decimal("1.40"))
    (create,) = scene.step()
    assert len(getattr(create, "avoid", ())) == MAX_AVOIDED
    assert len(dearer_nodes(scene.nodes.values(), scene.pools["a"], {}, Decimal("1.50"))) == 101 + 2
