"""A merge patch turns one document into another."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spot_training.control.patch import merge_patch
from tests.unit.control.objects import merged

LEAVES = st.booleans() | st.integers() | st.text(max_size=3)
KEYS = st.sampled_from("abcd")
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(DOCUMENTS, DOCUMENTS)
def test_applied_it_gives_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, merge_patch(before, after)) == after


@given(DOCUMENTS)
def test_nothing_for_nothing(document: dict[str, Any]) -> None:
    assert merge_patch(document, document) == {}
