"""Which pods a simulated kubelet has given up, and is reminded of."""

from typing import Any

import pytest

from spot_training.api.times import parse_time
from tests.kit.kwok import REMIND_SECONDS, given_up

SINCE = "2026-04-08T05:00:00Z"
NOW = parse_time(SINCE) + REMIND_SECONDS


def pod(node: str = "simulated", phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": SINCE}
    return {
        "metadata": {"namespace": "ns", "name": "pod", **metadata},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": [scheduled]},
    }


@pytest.mark.parametrize(
    ("waits", "after"),
    [
        (pod(phase="Pending"), 0),
        (pod(deletionTimestamp=SINCE), 0),
        (pod(deletionTimestamp="2026-04-08T05:00:55Z", deletionGracePeriodSeconds=55), 0),
        (pod(deletionTimestamp="2026-04-08T05:00:55Z"), 55),
    ],
)
def test_a_pod_that_has_waited_long_has_been_given_up(waits: dict[str, Any], after: float) -> None:
    assert given_up([waits], {"simulated"}, NOW + after) == []
    assert given_up([waits], {"simulated"}, NOW + after + 1) == [("ns", "pod")]
    assert given_up([waits], {"other"}, NOW + after + 1) == [], "a real kubelet needs no reminder"


def test_nothing_is_owed_to_a_pod_that_runs_or_is_bound_to_no_node() -> None:
    unbound = pod(phase="Pending")
    del unbound["spec"]["nodeName"], unbound["status"]["conditions"]
    assert given_up([pod(), unbound], {"simulated"}, NOW + 3600) == []
