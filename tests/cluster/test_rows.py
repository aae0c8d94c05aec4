"""Rows of the classification table on real pods: what API server, kubelet and runtime really say of them.

In each story the first attempt (in one the first three) ends in its own way, and the next one well. All are begun
together.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.cluster.objects import Json, changed
from tests.cluster.scene import Place, applied, seen, status, wait_for
from tests.kit import install, layout, volumes
from tests.kit.kube import kubectl

CONTAINER: Final = "spec.template.spec.containers.0"
WAIT: Final = "trap 'exit 143' TERM; while :; do sleep 0.1; done"
SEAT: Final = "test.example.com/seat"
"""The node has one, which nobody else asks for: who takes it pushes nobody else away."""

Act = Callable[[Place, str], None]


def _nothing(place: Place, name: str) -> None:
    """The pod ends by itself."""


def _running(place: Place, name: str) -> str:
    """The name of the first attempt's pod, once it runs."""
    wait_for(
        place.namespace,
        name,
        "runs",
        lambda: status(place.namespace, name).get("phase") == "Running",
        timeout=90,
    )
    return f"{name}-1-0"


def _evict(place: Place, name: str) -> None:
    pod = _running(place, name)
    metadata = {"name": pod, "namespace": place.namespace}
    body = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})
    path = f"/api/v1/namespaces/{place.namespace}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=body)


def _delete(place: Place, name: str) -> None:
    kubectl("-n", place.namespace, "delete", "pod", _running(place, name), "--wait=false")


def _outrank(place: Place, name: str) -> None:
    """A pod of a higher priority takes what the job's has, and has soon done with it."""
    _running(place, name)
    ranked = {"name": f"{place.names}-ahead"}
    container = {
        "name": "main",
        "image": install.TRAINING_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["true"],
        "resources": {"limits": {SEAT: "1"}},
    }
    applied(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": ranked, "value": 1000},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "ahead", "namespace": place.namespace},
            "spec": {
                "priorityClassName": ranked["name"],
                "restartPolicy": "Never",
                "containers": [container],
            },
        },
    )


def _mend(place: Place, name: str) -> None:
    """No pod of the template can start: the user mends that once it has happened."""

    def happened() -> bool:
        known = status(place.namespace, name)
        return bool(known.get("timeline") or known.get("suspectNodes"))

    wait_for(place.namespace, name, "not started", happened)
    row = next(each for each in ROWS if each.name == name)
    applied(made(place, row, {}))


@dataclass(frozen=True)
class Row:
    """What the first attempt runs, what is done to it, and what it must count as."""

    name: str
    script: str
    reason: str
    counts: tuple[int, int]
    fields: dict[str, Any] = field(default_factory=dict)
    act: Act = _nothing
    tries: int = 1
    """So many attempts end like this: the reason is that of one of them at least."""
    instead: str | None = None
    """The reason of the others, where the runtime does not always say what it was."""


ROWS: Final = [
    Row("row-exit-code", "exit 3", "ExitCode", (0, 1)),
    Row("row-retryable", "exit 42", "RetryableExit", (1, 0)),
    Row(
        "row-preempted",
        """echo '{"reason":"Preempted"}' > /dev/termination-log; exit 1""",
        "Preempted",
        (1, 0),
    ),
    Row(
        "row-claim-full",
        """echo '{"reason":"VolumeFull"}' > /dev/termination-log; exit 1""",
        "ClaimFull",
        (0, 0),
    ),
    Row("row-evicted", WAIT, "Evicted", (1, 0), act=_evict),
    Row("row-deleted", WAIT, "PodDeleted", (1, 0), act=_delete),
    Row(
        "row-outranked",
        WAIT,
        "PreemptedByScheduler",
        (1, 0),
        {f"{CONTAINER}.resources": {"limits": {SEAT: "1"}}},
        _outrank,
    ),
    Row(
        "row-memory",
        "exec python3 -c \"b'x' * (512 << 20)\"",
        "OOMKilled",
        (0, 3),
        {f"{CONTAINER}.resources": {"limits": {"memory": "64Mi"}}},
        # On a busy machine one had exit code 137 only: kubelet was told of the exit, and not of why.
        tries=3,
        instead="ExitCode",
    ),
    Row(
        "row-refused",
        "exit 0",
        "NodeRefused",
        (1, 0),
        # Past the scheduler, to a kubelet whose node is not of the pool.
        {"spec.template.spec.nodeName": layout.CONTROL_PLANE},
        _mend,
    ),
    Row(
        "row-init",
        "exit 0",
        "InitFailed",
        (0, 0),
        {
            "spec.template.spec.initContainers": [
                {
                    "name": "first",
                    "image": install.TRAINING_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "exit 5"],
                }
            ]
        },
        _mend,
    ),
]


def made(place: Place, row: Row, fields: dict[str, Any]) -> Json:
    script = f'[ "$SPOT_ATTEMPT" -le {row.tries} ] || exit 0; {row.script}'
    backoff = {"initialSeconds": 5, "maxSeconds": 5}
    recovery = {"backoff": backoff, "retryableExitCodes": [42], "maxFailures": 1000}
    base = {f"{CONTAINER}.command": ["sh", "-c", script], f"{CONTAINER}.image": install.TRAINING_IMAGE}
    return changed(place.job(row.name, recovery=recovery), base | fields)


def _seats(number: str | None) -> None:
    """So many of them on the pool's node; None: it knows of none."""
    node = next(each.name for each in layout.WORKERS if not each.is_spot)
    patch = {"status": {"capacity": {SEAT: number}, "allocatable": {SEAT: number}}}
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


@pytest.fixture(scope="module")
def begun(place: Place) -> Iterator[None]:
    _seats("1")
    for row in ROWS:
        volume = f"{place.names}-{row.name}"
        volumes.make_volume(volume, "1Mi", claim=(place.namespace, row.name))
        volumes.make_claim(place.namespace, row.name, volume, "1Mi")
        applied(made(place, row, row.fields))
    yield
    for row in ROWS:
        kubectl("-n", place.namespace, "delete", "stj", row.name, "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", row.name)
        volumes.delete_volume(f"{place.names}-{row.name}")
    kubectl("delete", "priorityclass", f"{place.names}-ahead", "--ignore-not-found")
    _seats(None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_on_a_real_pod(begun: None, row: Row, place: Place) -> None:
    row.act(place, row.name)
    wait_for(
        place.namespace,
        row.name,
        "ended well",
        lambda: status(place.namespace, row.name).get("phase") == "Succeeded",
        timeout=120,
    )
    state = status(place.namespace, row.name)
    told = seen(place.namespace, row.name)
    # What did not start interrupted nothing: it is in no timeline, but it speaks against the node.
    reasons = [each["reason"] for each in (*state["timeline"], *state.get("suspectNodes", ()))]
    first = reasons[: row.tries]
    assert row.reason in first, told
    assert set(first) <= {row.reason, row.instead or row.reason}, told
    if row.act is not _mend:
        assert (state["disruptions"], state["failures"]) == row.counts, told
    else:
        # How often the node had refused before it was mended is the machine's pace.
        assert [count > 0 for count in (state["disruptions"], state["failures"])] == [
            c > 0 for c in row.counts
        ], told
