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
    """Quick layers first, so that a mistake shows in seconds. What real pods do comes before what the API server says:
    the torch tests begin with it, compute beside all that only waits, and are looked at last.
    """
    order = {"unit": 0, "foreign": 1, "e2e": 2, "cluster": 3}
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        return (
            4
            if item.path.name == "test_training_image.py"
            else order.get(item.path.relative_to(root).parts[0], 5)
        )

    items.sort(key=rank)
