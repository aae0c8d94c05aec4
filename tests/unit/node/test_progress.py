"""How far the emptying of a node is."""

import pytest

from spot_training.node.progress import DETACH_SECONDS, Progress, attached, progress

NOW = 1_000_000.0
DRAINING, LATE, DETACHING, DRAINED = Progress


@pytest.mark.parametrize(
    ("before", "pods", "volumes", "left", "since", "expected"),
    [
        (DRAINING, 3, 0, 60, 0, DRAINING),
        (DRAINING, 3, 2, 60, 0, DRAINING),
        (DRAINING, 3, None, None, 0, DRAINING),
        # Past the deadline, and when it is put off or the last pod goes after all.
        (DRAINING, 3, 0, -0.1, 0, LATE),
        (LATE, 3, 0, -30, 0, LATE),
        (LATE, 3, 0, 60, 0, DRAINING),
        (LATE, 0, 0, -30, 0, DRAINED),
        # Volumes are waited for as long as the deadline's margin allows.
        (DRAINING, 0, 0, 60, 0, DRAINED),
        (DRAINING, 0, 2, 60, 0, DETACHING),
        (DRAINING, 0, None, 60, 0, DETACHING),
        (DETACHING, 0, 1, 5.1, 50, DETACHING),
        (DETACHING, 0, 1, 5, 50, DRAINED),
        (LATE, 0, 1, -30, 0, DRAINED),
        (DETACHING, 0, 0, 30, 9, DRAINED),
        # Without a deadline, as long as Kubernetes itself does.
        (DETACHING, 0, 1, None, DETACH_SECONDS - 1, DETACHING),
        (DETACHING, 0, 1, None, DETACH_SECONDS, DRAINED),
        # A new pod undoes it all; a new volume nothing.
        (DRAINED, 1, 0, 60, 0, DRAINING),
        (DETACHING, 1, 2, 60, 0, DRAINING),
        (DRAINED, 0, 2, 60, 0, DRAINED),
        (DRAINED, 0, 2, None, 0, DRAINED),
    ],
)
def test_how_far_it_is(
    before: Progress,
    pods: int,
    volumes: int | None,
    left: float | None,
    since: float,
    expected: Progress,
) -> None:
    deadline = None if left is None else NOW + left
    assert progress(before, pods, volumes, deadline, NOW - since, NOW) is expected


def test_the_volumes_of_a_node() -> None:
    assert attached({}) == 0
    assert attached({"status": {"volumesInUse": None, "volumesAttached": []}}) == 0
    status = {
        "volumesInUse": ["kubernetes.io/csi/ebs^vol-1", "kubernetes.io/csi/ebs^vol-2"],
        "volumesAttached": [
            {"name": "kubernetes.io/csi/ebs^vol-2", "devicePath": ""},
            {"name": "kubernetes.io/csi/ebs^vol-3", "devicePath": ""},
        ],
    }
    assert attached({"status": status}) == 3
