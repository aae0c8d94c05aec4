"""Real pods on real nodes: every test begins with all nodes in order and leaves nothing running."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.kit import engine, install, jobs, layout, nodes
from tests.kit.guest_agent import control
from tests.kit.kube import get
from tests.kit.shell import wait_until


def put_nodes_in_order() -> None:
    """Every node running, nothing announced, nothing cordoned."""
    for worker in layout.WORKERS:
        if nodes.container_state(worker.name) != "running":
            control.restore(worker.name)
        elif worker.capacity_type == "spot":
            control.withdraw(worker.name)
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


@pytest.fixture(scope="session", autouse=True)
def torch_tests(installed: None) -> Iterator[subprocess.Popen[str]]:
    """The torch tests of the training library, begun at once: the tests here mostly wait, these compute.

    They get what the others leave of the processors, and no more where those want it.
    """
    words = [
        *("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp", "--cpu-shares=128"),
        *("--volume", f"{install.ROOT}:/src:ro", "--workdir", "/src", "--env", "PYTHONPATH=/src/operator"),
        # Ranks are forked from the tests: OpenMP does not survive that where it has begun threads.
        *("--env", "HOME=/tmp", "--env", "OMP_NUM_THREADS=1"),
        install.torch_tests_image(),
        *(
            "/opt/venv/bin/python",
            "-m",
            "pytest",
            "--durations=5",
            "-c",
            "tests/train_torch/pytest.ini",
            "tests/train_torch",
        ),
    ]
    begun = subprocess.Popen(
        [engine.client(), *words],
        env=os.environ | engine.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield begun
    begun.terminate()
    begun.wait()


@pytest.fixture(autouse=True)
def in_order(installed: None) -> Iterator[None]:
    """Nodes in order before; afterwards no job is left that would disturb the next test."""
    put_nodes_in_order()
    yield
    # Nodes first: a pod on a machine that is away cannot be seen to end.
    put_nodes_in_order()
    for job in get("stj", "-n", "default"):
        jobs.remove(job["metadata"]["name"])
