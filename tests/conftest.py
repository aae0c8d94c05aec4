"""Fixtures that all layers share; `tests/unit` uses none of them and needs no cluster."""

from pathlib import Path

import pytest

from tests.kit import cluster, install

# These need torch: they run in the training image (tests/e2e/test_training_image.py).
collect_ignore = ["train_torch"]


@pytest.fixture(scope="session")
def installed() -> None:
    """The cluster with the project installed as users install it; quick where it is already."""
    cluster.up()
    install.up()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick layers first, so that a mistake shows in seconds."""
    order = {"unit": 0, "foreign": 1, "cluster": 2, "e2e": 3}
    root = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(root).parts[0], 4))
