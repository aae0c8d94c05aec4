"""What metrics say of costs: as much as the status does, by pool, namespace and chosen labels, and no more series."""

import dataclasses
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from spot_training.control.charges import Charges, metric_label
from spot_training.control.metrics import Metrics
from spot_training.control.observations import Charge, charges
from spot_training.control.world import Report
from tests.unit.control.build import Scene, job
from tests.unit.control.test_cost import HOUR, end, priced, running
from tests.unit.control.test_on_demand import on_demand, spot_is_back


class Charging(Scene):
    """A scene whose writes are charged for."""

    charged: list[Charge]

    def step(self, after: float = 0.0) -> list[Any]:
        before = self.status
        made = super().step(after)
        found = charges(before, self.status)
        self.__dict__.setdefault("charged", []).extend(found)
        return made


def charging(scene: Scene) -> Charging:
    made = Charging(scene.job.spec)
    made.pools = scene.pools
    return made


def test_what_writes_charge_adds_up_to_the_bill() -> None:
    scene = charging(priced())
    running(scene)
    for _ in range(5):
        scene.step(301)
    end(scene, code=137, after=400).step()
    while scene.current.attempt == 1:
        scene.run(20)
    running(scene)
    end(scene, code=0, after=HOUR).step()
    assert scene.status.cost is not None
    assert len(scene.charged) > 6
    assert sum(each.spent for each in scene.charged) == pytest.approx(float(scene.status.cost.spent))
    assert sum(each.hours for each in scene.charged) == pytest.approx(float(scene.status.cost.spot_hours))
    assert {each.capacity_type for each in scene.charged} == {"Spot"}
    assert charges(scene.status, scene.status) == []


def test_what_turns_out_to_have_been_less_is_not_paid_back() -> None:
    scene = charging(priced())
    running(scene)
    scene.step(301)
    name = scene.pod().node
    scene.leases[name] = scene.now - 100
    scene.charged.clear()
    del scene.nodes[name]
    scene.step(1)
    assert scene.status.cost is not None
    assert Decimal(scene.status.cost.spot_hours) < Decimal("0.07")
    assert all(each.spent >= 0 for each in scene.charged)


def test_what_was_lost_is_charged_where_it_was_lost() -> None:
    scene = charging(priced(pools=["a", "b"]))
    running(scene)
    scene.now += HOUR
    name = scene.pod().node
    scene.leases[name] = scene.now
    scene.nodes = {each: made for each, made in scene.nodes.items() if made.labels["pool"] == "b"}
    for _ in range(40):
        if scene.status.current is not None and scene.current.attempt == 2:
            break
        scene.run(20)
    running(scene)
    scene.now += 100
    report = Report("Preempted", step=9, resumed_step=0)
    scene.exit(143, report=report, ended_at=scene.now, deleting=True).run()
    lost = [(each.pool, each.lost_seconds) for each in scene.charged if each.lost_seconds]
    assert sorted(lost) == [("a", 3600), ("b", 100)], scene.status.to_json()
    assert sum(seconds for _, seconds in lost) == scene.status.lost_seconds


def read(metrics: Metrics | CollectorRegistry, name: str, **labels: str) -> float | None:
    registry = metrics.registry if isinstance(metrics, Metrics) else metrics
    return registry.get_sample_value(f"spot_operator_{name}", labels)


def test_costs_are_told_by_pool_namespace_and_the_chosen_labels() -> None:
    metrics = Metrics(["team", "example.org/project"])
    scene = priced()
    scene.job = dataclasses.replace(scene.job, labels={"team": "vision", "other": "x"})
    running(scene)
    before = scene.job
    end(scene, after=HOUR - 10).step()
    metrics.note_charge(dataclasses.replace(before, status=before.status), scene.status)
    labels = {
        "pool": "a",
        "capacity_type": "Spot",
        "namespace": "ns",
        "label_team": "vision",
        "label_example_org_project": "",
    }
    charged_before = 10 / HOUR
    assert read(metrics, "spent_total", **labels) == pytest.approx(1 - charged_before, abs=1e-5)
    assert read(metrics, "node_hours_total", **labels) == pytest.approx(1 - charged_before, abs=1e-5)
    assert read(metrics, "on_demand_equivalent_total", **labels) == pytest.approx(
        4 * (1 - charged_before), abs=1e-5
    )


def test_so_many_combinations_are_kept_apart_and_the_rest_is_other() -> None:
    registry = CollectorRegistry()
    charges = Charges(registry, ["team"], limit=2)
    found = Charge("a", "Spot", 1.0, 2.0, 3.0, 4)
    for team in ("one", "two", "three", "four", "one"):
        charges.add(job(labels={"team": team}), found)
    about = {"pool": "a", "capacity_type": "Spot"}
    assert read(registry, "spent_total", **about, namespace="ns", label_team="one") == 4
    assert read(registry, "spent_total", **about, namespace="Other", label_team="Other") == 4
    assert read(registry, "lost_seconds_total", **about, namespace="ns", label_team="two") == 4
    assert read(registry, "spent_total", **about, namespace="ns", label_team="three") is None


def test_two_labels_that_would_be_one_are_refused() -> None:
    assert metric_label("example.org/team") == "label_example_org_team"
    with pytest.raises(ValueError, match=r"a\.b, a/b: two of them are one"):
        Charges(CollectorRegistry(), ["a.b", "a/b"])


def test_a_budget_that_is_used_up_and_a_way_back_are_counted_once() -> None:
    metrics = Metrics()
    scene = on_demand()

    def step(after: float) -> None:
        before = scene.status
        scene.run(after)
        metrics.note_write(before, scene.status)

    step(1800)
    step(1)
    assert read(metrics, "budget_exhausted_total") == 1
    scene = on_demand(onDemand={"maxCost": "99.00"})
    spot_is_back(scene)
    for _ in range(8):
        if scene.current.stop is None:
            step(60)
    assert scene.stop.cause == "BackToSpot"
    assert read(metrics, "back_to_spot_total", pool="b") == 1
