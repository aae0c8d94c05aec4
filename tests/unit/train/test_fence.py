import pytest

from spot_training.train.fence import attempt_number, check_fence, fence_after, local_fence
from tests.unit.train.programs import fence

NOON = 1795262400.0  # 2026-11-21T12:00:00Z


def test_fences_sort_by_job_then_attempt() -> None:
    other_job = "20261121T043501Z-00000000-0000-0000-0000-000000000000-000001"
    ordered = [fence(1), fence(2), fence(10), fence(999_999), other_job]
    assert sorted(ordered) == ordered
    assert [attempt_number(name) for name in ordered] == [1, 2, 10, 999_999, 1]


def test_a_local_fence_is_the_time_and_a_number_that_counts_on() -> None:
    assert local_fence(NOON, []) == "20261121T120000Z-local-000001"
    assert local_fence(NOON, [fence(3)]) == "20261121T120000Z-local-000001"
    assert local_fence(NOON + 60, ["20261121T120000Z-local-000001"]) == "20261121T120100Z-local-000002"


@pytest.mark.parametrize(
    "newest",
    [
        "20261121T120000Z-local-000007",
        "20261121T120000Z-ffff-000001",
        "20301231T235959Z-local-000001",
        "zzz",
        "z-9",
    ],
)
def test_a_local_fence_is_the_newest_whatever_the_clock_says(newest: str) -> None:
    assert local_fence(NOON, [newest, fence(1)]) > newest
    assert fence_after(newest) > newest


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "a b", "x" * 300, "a\n"])
def test_a_fence_that_cannot_name_a_directory_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="fence"):
        check_fence(bad)
