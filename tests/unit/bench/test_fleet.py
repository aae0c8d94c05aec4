"""What the fleet notices on its Nodes, and how it says so."""

from typing import Any

from spot_training.cluster.client import Connection
from tests.kit.fleet import Member, told


def node(version: int, taints: list[str], *writers: tuple[str, str, bool]) -> dict[str, Any]:
    """A Node with these taints; each writer has a name, a time, and whether the taints are as it wrote them."""
    fields = [
        {
            "manager": name,
            "operation": "Update",
            "time": f"2026-04-08T05:00:{second}Z",
            "fieldsV1": {"f:spec": {"f:taints": {}} if taints else {"f:unschedulable": {}}},
        }
        for name, second, taints in writers
    ]
    spec = {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
    metadata = {"name": "n", "resourceVersion": str(version), "managedFields": fields}
    return {"metadata": metadata, "spec": spec}


def test_a_taint_that_goes_is_kept_with_the_node_before_and_after() -> None:
    member = Member("n", Connection("", None))
    member.saw(node(7, ["pool", "ours"], ("agent", "01", True)))
    member.saw(node(8, ["ours", "pool", "theirs"], ("agent", "01", False), ("other", "02", True)))
    assert member.losses == []
    after = node(9, ["theirs"], ("agent", "01", False), ("other", "02", False), ("thief", "03", True))
    member.saw(after)
    member.saw(node(10, ["theirs", "pool", "ours"], ("agent", "04", True)))
    assert [loss.key for loss in member.losses] == ["ours", "pool"]
    assert str(member.losses[0]) == (
        "n lost ours; before: [ours:NoSchedule, pool:NoSchedule, theirs:NoSchedule], version 8, "
        "written by *other Update 2026-04-08T05:00:02Z, agent Update 2026-04-08T05:00:01Z; "
        f"after: {told(after)}"
    )
    assert "written by *thief Update 2026-04-08T05:00:03Z, other" in told(after)


def test_a_taint_that_has_not_come_yet_is_missing_and_not_lost() -> None:
    member, wanted = Member("n", Connection("", None)), {"ours", "cordon"}
    member.saw(node(7, ["ours"]))
    assert member.lost(wanted) == []
    assert member.missing(wanted) == [f"n has no cordon: {told(member.node)}"]
    member.saw(node(8, ["cordon"]))
    member.saw(node(9, ["cordon", "ours"]))
    assert len(member.lost(wanted)) == 1 and member.lost({"cordon"}) == []
    assert member.missing(wanted) == []


def test_a_node_without_taints_and_managers_tells_what_it_has() -> None:
    assert told({"metadata": {"resourceVersion": "1"}}) == ("[no taint], version 1, written by nobody known")
