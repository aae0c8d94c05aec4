"""Real pods on real nodes: every test begins with all nodes in order and leaves nothing running."""

from collections.abc import Iterator

import pytest

from tests.kit import jobs, layout, nodes
from tests.kit.guest_agent import control
from tests.kit.kube import get
from tests.kit.shell import together, wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here takes nodes away, or might."""
    for item in items:
        if "in_order" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.spot_nodes)


def put_nodes_in_order() -> None:
    """Every node running, nothing announced, nothing cordoned."""
    states = nodes.container_states()
    for worker in layout.WORKERS:
        if states.get(worker.name) != "running":
            control.restore(worker.name)
    together(
        *(lambda name=worker.name: control.withdraw(name) for worker in layout.WORKERS if worker.is_spot)
    )
    wait_until(
        "all workers schedulable and unmarked",
        lambda: all(
            not node["spec"].get("unschedulable")
            and nodes.is_ready(node)
            and not any(taint["key"] == "spot.training/reclaim" for taint in node["spec"].get("taints", []))
            for node in get("nodes", *layout.WORKER_NAMES)
        ),
        timeout=90,
        seen=lambda: nodes.describe(layout.WORKER_NAMES),
    )


@pytest.fixture(autouse=True)
def in_order(installed: None) -> Iterator[None]:
    """Nodes in order before; afterwards no job is left that would disturb the next test."""
    put_nodes_in_order()
    yield
    # Nodes first: a pod on a machine that is away cannot be seen to end.
    put_nodes_in_order()
    for job in get("stj", "-n", "default"):
        jobs.remove(job["metadata"]["name"])
