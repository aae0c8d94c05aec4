"""Marks on a Node and their undoing, applied with a JSON Patch library of others."""

import copy
from dataclasses import replace
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.node import marks
from spot_training.node.marks import Marks
from spot_training.node.progress import Progress

Json = dict[str, Any]

NOW = 1_775_624_400.0  # 2026-04-08T05:00:00Z
MARKS = Marks("eci-1775624400", "reclaim", "eci", NOW, NOW - 60)
WARNING = Marks("aws-rebalance-1", "rebalance", "aws", None, NOW - 60, warns=True)
WARNED = {"key": "spot.training/reclaim", "value": "rebalance", "effect": "PreferNoSchedule"}
OURS = {"key": "spot.training/reclaim", "value": "reclaim", "effect": "NoSchedule"}
POOL = {"key": "spot.training/capacity-type", "value": "spot", "effect": "NoSchedule"}
CONTROLLERS = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
ANNOTATIONS = {
    "spot.training/notice-id": "eci-1775624400",
    "spot.training/notice-kind": "reclaim",
    "spot.training/notice-source": "eci",
    "spot.training/reclaim-deadline": "2026-04-08T05:00:00.000Z",
    "spot.training/noticed-at": "2026-04-08T04:59:00.000Z",
    "spot.training/cordoned-at": "2026-04-08T05:00:00.000Z",
}


def node(
    taints: list[Json] | None = None, annotations: Json | None = None, unschedulable: bool | None = None
) -> Json:
    result: Json = {"metadata": {"name": "n", "uid": "u1", "resourceVersion": "7"}, "spec": {}, "status": {}}
    if taints is not None:
        result["spec"]["taints"] = taints
    if annotations is not None:
        result["metadata"]["annotations"] = annotations
    if unschedulable is not None:
        result["spec"]["unschedulable"] = unschedulable
    return result


def patched(before: Json, patch: list[Json]) -> Json:
    after: Json = jsonpatch.apply_patch(before, patch)
    return after


def test_a_bare_node_gets_everything_in_one_patch() -> None:
    after = patched(node(), marks.apply(node(), MARKS, NOW))
    assert after["spec"] == {"unschedulable": True, "taints": [OURS, CONTROLLERS]}
    assert after["metadata"]["annotations"] == ANNOTATIONS | {
        "spot.training/cordoned-by": "spot.training/agent"
    }
    assert marks.read(after) == MARKS


def test_others_taints_stay_where_they_are() -> None:
    before = node([POOL, CONTROLLERS], {"a": "b"})
    after = patched(before, marks.apply(before, MARKS, NOW))
    assert after["spec"]["taints"] == [POOL, CONTROLLERS, OURS]
    assert after["metadata"]["annotations"]["a"] == "b"


def test_every_patch_is_bound_to_the_node_it_was_made_from() -> None:
    for patch in (marks.apply(node(), MARKS, NOW), marks.undo(node([OURS]))):
        assert patch[0] == {"op": "test", "path": "/metadata/uid", "value": "u1"}
        assert patch[1] == {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}


def test_a_node_that_is_marked_needs_nothing() -> None:
    after = patched(node([POOL]), marks.apply(node([POOL]), MARKS, NOW))
    assert marks.apply(after, MARKS, NOW) == []


def test_a_lost_taint_and_another_deadline_are_put_right() -> None:
    full = patched(node([POOL]), marks.apply(node([POOL]), MARKS, NOW))
    lost = copy.deepcopy(full)
    lost["spec"]["taints"] = [POOL, {**OURS, "value": "rebalance"}, CONTROLLERS]
    assert patched(lost, marks.apply(lost, MARKS, NOW)) == full
    sooner = Marks("eci-1", "reclaim", "eci", NOW - 30, NOW - 60)
    assert marks.read(patched(full, marks.apply(full, sooner, NOW))) == sooner


def test_undoing_restores_the_node_exactly() -> None:
    before = node([POOL, {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}], {"a": "b"})
    after = patched(before, marks.apply(before, MARKS, NOW))
    restored = patched(after, marks.undo(after))
    assert restored == before
    assert marks.undo(restored) == []


def test_a_cordon_of_somebody_else_is_never_undone() -> None:
    before = node([CONTROLLERS], {}, unschedulable=True)
    after = patched(before, marks.apply(before, MARKS, NOW))
    assert "spot.training/cordoned-by" not in after["metadata"]["annotations"]
    restored = patched(after, marks.undo(after))
    assert restored["spec"] == {"unschedulable": True, "taints": [CONTROLLERS]}
    assert restored["metadata"]["annotations"] == {}


def test_a_person_who_uncordoned_meanwhile_is_not_contradicted() -> None:
    marked = patched(node(), marks.apply(node(), MARKS, NOW))
    del marked["spec"]["unschedulable"]
    assert "unschedulable" not in patched(marked, marks.undo(marked))["spec"]


@pytest.mark.parametrize(
    ("damaged", "read"),
    [
        (node(), None),
        (node([POOL], {"a": "b"}), None),
        (node([OURS]), Marks("unnamed", "reclaim", "unnamed", None, None)),
        (
            node(
                [], ANNOTATIONS | {"spot.training/reclaim-deadline": "soon", "spot.training/noticed-at": ""}
            ),
            Marks("eci-1775624400", "reclaim", "eci", None, None),
        ),
    ],
)
def test_reading_survives_what_people_do_to_marks(damaged: Json, read: Marks | None) -> None:
    assert marks.read(damaged) == read


def test_a_warning_taints_softly_and_does_not_cordon() -> None:
    before = node([POOL], {"a": "b"})
    after = patched(before, marks.apply(before, WARNING, NOW))
    assert after["spec"] == {"taints": [POOL, WARNED]}
    assert after["metadata"]["annotations"] == {
        "a": "b",
        "spot.training/notice-id": "aws-rebalance-1",
        "spot.training/notice-kind": "rebalance",
        "spot.training/notice-source": "aws",
        "spot.training/noticed-at": "2026-04-08T04:59:00.000Z",
    }
    assert marks.read(after) == WARNING
    assert marks.apply(after, WARNING, NOW) == []
    assert patched(after, marks.undo(after)) == before


@pytest.mark.parametrize("unschedulable", [None, True])
def test_from_a_warning_to_a_reclamation_and_back(unschedulable: bool | None) -> None:
    before = node([POOL], {"a": "b"}, unschedulable)
    warned = patched(before, marks.apply(before, WARNING, NOW))
    reclaimed = patched(warned, marks.apply(warned, MARKS, NOW))
    cordon = [] if unschedulable else [CONTROLLERS]
    assert reclaimed["spec"] == {"taints": [POOL, OURS, *cordon], "unschedulable": True}
    assert marks.read(reclaimed) == MARKS
    assert patched(reclaimed, marks.apply(reclaimed, WARNING, NOW)) == warned
    assert patched(reclaimed, marks.undo(reclaimed)) == before


taint = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["spot.training/reclaim", "a/b", "c"]),
        "value": st.sampled_from(["reclaim", "rebalance", "x"]),
        "effect": st.sampled_from(["NoSchedule", "PreferNoSchedule", "NoExecute"]),
    }
)


@given(
    taints=st.none() | st.lists(taint, max_size=4, unique_by=lambda one: (one["key"], one["effect"])),
    annotations=st.none() | st.dictionaries(st.sampled_from([*ANNOTATIONS, "a"]), st.just("x")),
    unschedulable=st.none() | st.booleans(),
)
@pytest.mark.parametrize(("wanted", "mark"), [(MARKS, OURS), (WARNING, WARNED)])
def test_whatever_is_there_marks_are_whole_and_undone_whole(
    wanted: Marks, mark: Json, taints: list[Json] | None, annotations: Json | None, unschedulable: bool | None
) -> None:
    before = node(taints, annotations, unschedulable)
    original = copy.deepcopy(before)
    after = patched(before, marks.apply(before, wanted, NOW))
    assert before == original
    assert marks.read(after) == wanted
    assert bool(after["spec"].get("unschedulable")) == (bool(unschedulable) or not wanted.warns)
    assert [one for one in after["spec"]["taints"] if one["key"] == mark["key"]] == [mark]
    assert marks.apply(after, wanted, NOW) == []
    foreign = [one for one in taints or [] if one["key"] != OURS["key"]]
    cordon = [] if wanted.warns or unschedulable else [CONTROLLERS]
    assert [one for one in after["spec"]["taints"] if one["key"] != OURS["key"]] == foreign + cordon
    restored = patched(after, marks.undo(after))
    assert restored["spec"].get("taints", []) == foreign
    assert bool(restored["spec"].get("unschedulable")) == bool(unschedulable)
    assert not set(restored["metadata"]["annotations"]) - {"a"}
    assert marks.undo(restored) == []


def test_conditions_change_only_when_they_change() -> None:
    before = node()
    body = marks.condition_patch(before, marks.draining(MARKS, Progress.DRAINING), NOW)
    assert body is not None
    states = {one["type"]: one["status"] for one in body["status"]["conditions"]}
    assert states == {"DrainInProgress": "True", "Drained": "False"}
    assert {one["lastTransitionTime"] for one in body["status"]["conditions"]} == {"2026-04-08T05:00:00Z"}
    before["status"] = body["status"]
    assert marks.condition_patch(before, marks.draining(MARKS, Progress.DRAINING), NOW + 9) is None
    done = marks.condition_patch(before, marks.draining(MARKS, Progress.DRAINED), NOW + 9)
    assert done is not None
    assert {one["type"]: one["status"] for one in done["status"]["conditions"]} == {
        "DrainInProgress": "False",
        "Drained": "True",
    }


@pytest.mark.parametrize("step", Progress)
def test_how_far_a_drain_was_can_be_read_from_the_conditions_of_the_same_marks(step: Progress) -> None:
    before = node()
    assert marks.progress(before, MARKS) is Progress.DRAINING
    body = marks.condition_patch(before, marks.draining(MARKS, step), NOW)
    assert body is not None
    before["status"] = body["status"]
    assert marks.progress(before, MARKS) is step
    # Another notice's drain, or the same by another time, is not that far.
    assert marks.progress(before, replace(MARKS, notice_id="eci-2")) is Progress.DRAINING
    assert marks.progress(before, replace(MARKS, deadline=NOW + 60)) is Progress.DRAINING
    assert marks.progress(before, WARNING) is Progress.DRAINING


def test_without_a_notice_conditions_are_false_and_a_node_never_drained_gets_none() -> None:
    assert marks.withdrawn(node()) == ()
    drained = node()
    drained["status"]["conditions"] = [
        {"type": "Ready", "status": "True"},
        {
            "type": "Drained",
            "status": "True",
            "reason": "SpotReclamation",
            "message": "",
            "lastTransitionTime": "t",
        },
    ]
    body = marks.condition_patch(drained, marks.withdrawn(drained), NOW)
    assert body is not None
    assert [(one["type"], one["status"]) for one in body["status"]["conditions"]] == [("Drained", "False")]
