"""Threads that share work."""

import threading

import pytest

from spot_training.train.helpers import Helpers


def test_all_shares_are_done_when_it_returns_and_threads_are_kept_for_the_next() -> None:
    before = threading.active_count()
    with Helpers(3) as helpers:
        assert threading.active_count() == before, "none before there is work"
        done: list[tuple[int, str]] = []

        def work(number: int) -> None:
            done.append((number, threading.current_thread().name))

        for _ in range(50):
            done.clear()
            helpers.share(work, 4)
            assert sorted(number for number, _ in done) == [0, 1, 2, 3]
            assert dict(done)[0] == threading.current_thread().name
        assert threading.active_count() == before + 3
        helpers.share(work, 9)
        assert len(done) == 4 + 9, "more shares than threads"
    assert threading.active_count() == before


@pytest.mark.parametrize("where", [0, 1])
def test_a_failure_is_raised_after_all_others_are_done(where: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == where:
            raise OSError("disk")
        done.append(number)

    with Helpers(2) as helpers:
        with pytest.raises(OSError, match="disk"):
            helpers.share(work, 3)
        assert len(done) == 2
        helpers.share(done.append, 3)
        assert len(done) == 5
