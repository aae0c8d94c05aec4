"""The API server of the test cluster: through the kubectl that was built with it, and for reading without it."""

import json
from pathlib import Path
from typing import Any

from tests.kit import gotools, places, questions
from tests.kit.shell import run


def kubectl(*args: str, stdin: str | None = None, timeout: float = 120) -> str:
    """Run kubectl against the test cluster; returns what it prints. Raises CommandError with its complaint."""
    return run(
        [gotools.path("kubectl"), "--kubeconfig", places.KUBECONFIG, *args], stdin=stdin, timeout=timeout
    )


def get(*what: str) -> list[dict[str, Any]]:
    """Objects as the API server has them, such as `get("pods", "-n", "default")`: a list also for one."""
    return questions.objects(what)


def apply(*manifests: dict[str, Any]) -> None:
    """`kubectl apply` of objects given as data."""
    kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
    )


def tool(name: str) -> Path:
    """The path of `kubectl`, `helm` or `kind`, as `up` has built it."""
    path = gotools.path(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m tests.kit.cluster up`")
    return path
