"""The objects that the tests of this folder apply, and the kubectl with which a user would apply them."""

import copy
import json
from typing import Any, Final

from tests.kit.kube import tool
from tests.kit.places import KUBECONFIG
from tests.kit.shell import completed

Json = dict[str, Any]

API_VERSION: Final = "spot.training/v1alpha1"
ABSENT: Final = object()
"""As a new value: the field is taken away."""


def job(name: str, namespace: str, **spec: Any) -> Json:
    """The least that must be said of a job; `spec` adds to it."""
    container = {"name": "main", "image": "spot-training-example:dev", "imagePullPolicy": "IfNotPresent"}
    return {
        "apiVersion": API_VERSION,
        "kind": "SpotTrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "template": {"spec": {"containers": [container]}},
            "checkpoint": {"mountPath": "/mnt/checkpoint", "claimName": "checkpoints"},
            **spec,
        },
    }


def pool(name: str, **spec: Any) -> Json:
    """A pool of the nodes that bear a label which no node bears, unless `spec` says otherwise."""
    return {
        "apiVersion": API_VERSION,
        "kind": "SpotPool",
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"spot.training/pool": name}, **spec},
    }


def changed(made: Json, changes: dict[str, Any]) -> Json:
    """A copy with other values at dotted paths, such as `spec.template.spec.containers.0.image`."""
    result = copy.deepcopy(made)
    for path, value in changes.items():
        at: Any = result
        *parents, last = path.split(".")
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is ABSENT:
            del at[last]
        elif isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    return result


def kubectl(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Run kubectl as a user does; returns its exit code, what it printed, and its complaint."""
    done = completed(
        [str(tool("kubectl")), "--kubeconfig", str(KUBECONFIG), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def apply(made: Json, *options: str) -> tuple[int, str, str]:
    """`kubectl apply` of one object; as JSON, which is YAML."""
    return kubectl("apply", *options, "-f", "-", stdin=json.dumps(made))
