"""Who shares does so at once, who is alone is alone, and nobody waits for ever."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import places
from tests.kit.turns import Lock, Turns

SOON = 5.0


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "STATE", tmp_path)


class Visitor:
    """Somebody who takes a lock in a thread of his own and has it until he is told to leave."""

    def __init__(self, exclusive: bool) -> None:
        self.has, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._visit, args=(exclusive,))
        self._thread.start()

    def _visit(self, exclusive: bool) -> None:
        lock = Lock("thing", exclusive)
        self.has.set()
        self._leave.wait(SOON)
        lock.give_back()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join()


@contextmanager
def visiting(exclusive: bool) -> Iterator[Visitor]:
    visitor = Visitor(exclusive)
    try:
        yield visitor
    finally:
        visitor.leave()


def test_two_share_it() -> None:
    with visiting(False) as one, visiting(False) as other:
        assert one.has.wait(SOON)
        assert other.has.wait(SOON)


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True)])
def test_one_who_is_alone_has_it_when_the_other_has_left(first: bool, second: bool) -> None:
    with visiting(first) as one:
        assert one.has.wait(SOON)
        with visiting(second) as other:
            assert not other.has.wait(0.1)
            one.leave()
            assert other.has.wait(SOON)


def test_who_came_later_does_not_go_in_before_one_who_waits_to_be_alone() -> None:
    with visiting(False) as one:
        assert one.has.wait(SOON)
        with visiting(True) as alone:
            assert not alone.has.wait(0.1)
            with visiting(False) as late:
                assert not late.has.wait(0.1), "he would share it with the first"
                one.leave()
                assert alone.has.wait(SOON)
                assert not late.has.is_set()
                alone.leave()
                assert late.has.wait(SOON)


def test_what_a_module_holds_is_kept_between_its_tests_and_the_rest_is_not() -> None:
    turns = Turns()
    turns.take({"spot_nodes": True, "cluster": False})
    turns.keep_only({"spot_nodes": True})
    Lock("cluster", exclusive=True).give_back()
    began = time.monotonic()
    turns.take({"spot_nodes": True, "cluster": False})
    assert time.monotonic() - began < SOON, "it was held already"
    turns.keep_only({})
    Lock("spot_nodes", exclusive=True).give_back()


def test_the_order_in_which_they_are_taken_is_kept() -> None:
    turns = Turns()
    turns.take({"cluster": True})
    with pytest.raises(AssertionError, match="spot_nodes must be taken before"):
        turns.take({"cluster": True, "spot_nodes": True})
    turns.keep_only({})
