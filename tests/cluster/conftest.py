"""What the API server says, what the operator says, what the chart brings: no test here needs a spot node."""

import secrets
from collections.abc import Iterator

import pytest

from tests.cluster.scene import Place, applied
from tests.kit.kube import get, kubectl


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


@pytest.fixture(scope="module")
def place(unique: str, namespace: str) -> Iterator[Place]:
    """Where jobs can be made that get as far as their pods: a pool of the on-demand node, taken for spot."""
    made = Place(unique, namespace)
    applied(made.pool("here", here=True))
    yield made
    kubectl("-n", namespace, "delete", "stj", "--all", "--wait=true")
    names = [each["metadata"]["name"] for each in get("spotpools")]
    kubectl("delete", "spotpool", *(name for name in names if name.startswith(unique)))
