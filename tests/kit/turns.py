"""Who may use what the whole cluster shares, where several runs of tests are at it side by side.

Two things are shared. What a test says of them by its marks is taken before its fixtures are made, and given back after
they have ended; whoever dies gives back what he had, for the kernel holds the locks.

- `cluster`: the API server and the operator. Every test shares it. One that is marked `alone` has it to itself: it
  takes the operator away, kills it or has another in its place.
- `spot_nodes`: the three spot nodes, what is announced on them, and the agents there. One that is marked so has them to
  itself, as every test of `tests/e2e` is that puts them in order.

A mark on a module holds from its first test to its last, for its fixtures last as long. A test may make and delete
objects of its own, also cluster-wide ones under a name of its own, and may count on nothing about those of others.
"""

import fcntl
import os
import time
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.kit import places

CLUSTER: Final = "cluster"
SPOT_NODES: Final = "spot_nodes"
ALONE: Final = "alone"
ORDER: Final = (SPOT_NODES, CLUSTER)
"""In which they are taken: two that took them in different orders would wait for each other."""


class Lock:
    """One of the things, taken: shared with others who share it, or exclusively."""

    def __init__(self, name: str, exclusive: bool) -> None:
        directory = places.STATE / "turns"
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / name, os.O_RDWR | os.O_CREAT)
        # Who waits stands in the door, so that those who share it cannot go in and out before him for ever.
        door = os.open(directory / f"{name}.door", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(self._file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except BaseException:
            os.close(self._file)
            raise
        finally:
            os.close(door)

    def give_back(self) -> None:
        os.close(self._file)


@dataclass
class Turns:
    """What this run of tests has now; `waited`: for how many seconds it has waited in all."""

    waited: float = 0.0
    _held: dict[str, Lock] = field(default_factory=dict)

    def take(self, wanted: dict[str, bool]) -> None:
        """Have these, by name: exclusively or shared. What a module holds is held already."""
        began = time.monotonic()
        for name in ORDER:
            if name in wanted and name not in self._held:
                later = ORDER[ORDER.index(name) + 1 :]
                assert not any(each in self._held for each in later), f"{name} must be taken before {later}"
                self._held[name] = Lock(name, wanted[name])
        self.waited += time.monotonic() - began

    def keep_only(self, wanted: dict[str, bool]) -> None:
        """Give back what is not among these."""
        for name in [name for name in self._held if name not in wanted]:
            self._held.pop(name).give_back()


def of_module(item: pytest.Item) -> dict[str, bool]:
    """What the marks of the test's module hold from its first test to its last."""
    module = item.getparent(pytest.Module)
    return _exclusive({mark.name for mark in module.own_markers} if module else set())


def of_test(item: pytest.Item) -> dict[str, bool]:
    """What the test holds while it runs, with its fixtures."""
    return {CLUSTER: False, **_exclusive({mark.name for mark in item.iter_markers()})}


def _exclusive(marks: set[str]) -> dict[str, bool]:
    named = {ALONE: CLUSTER, SPOT_NODES: SPOT_NODES}
    return {thing: True for mark, thing in named.items() if mark in marks}
