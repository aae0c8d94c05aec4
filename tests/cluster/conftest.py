"""What the API server says, what the operator says, what the chart brings: no test here needs a spot node."""

import secrets
from collections.abc import Iterator

import pytest

from tests.kit.kube import kubectl


@pytest.fixture(scope="session", autouse=True)
def _installed(installed: None) -> None:
    """Every test here needs the cluster and what is installed on it."""


@pytest.fixture(scope="module")
def unique() -> str:
    """Begins the names of what the module makes: a run that was interrupted cannot be in the way of the next."""
    return f"test-{secrets.token_hex(3)}"


@pytest.fixture(scope="module")
def namespace(unique: str) -> Iterator[str]:
    """The module's own namespace; it takes with it what is left in it."""
    kubectl("create", "namespace", unique)
    yield unique
    kubectl("delete", "namespace", unique, "--wait=false")
