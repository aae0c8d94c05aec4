"""Fixtures that all layers share, and whose turn it is; `tests/unit` uses none of it and needs no cluster."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.kit import cluster, install, turns

# These need torch: they run in the training image (tests/image/test_training_image.py).
collect_ignore = ["train_torch"]

_turns = turns.Turns()


@pytest.fixture(scope="session")
def installed() -> None:
    """The cluster with the project installed as users install it; quick where it is already."""
    if install.INSTALLED not in os.environ:
        cluster.up()
        install.up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, bool, bool]:
    """A test has what it is marked with, from before its fixtures are made until after they have ended."""
    module = turns.of_module(item)
    try:
        if "installed" in getattr(item, "fixturenames", ()):
            _turns.take({**turns.of_test(item), **module})
        return (yield)
    finally:
        same = nextitem is not None and nextitem.path == item.path
        _turns.keep_only(module if same else {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of the time was nobody's work here."""
    if _turns.waited >= 1:
        terminalreporter.write_line(f"waited {_turns.waited:.0f} s for tests that run beside these")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick layers first, so that a mistake shows in seconds, and what real pods do before what the API server says.

    There, what must have the spot nodes or the cluster to itself comes last, when nobody may be left to wait for.
    """
    layers = {"unit": 0, "foreign": 1, "e2e": 2, "cluster": 3}

    def rank(item: pytest.Item) -> tuple[int, int]:
        layer = item.path.relative_to(Path(__file__).parent).parts[0]
        marks = {mark.name for mark in item.iter_markers()} if layer == "cluster" else set()
        return layers.get(layer, 4), 2 * (turns.ALONE in marks) + (turns.SPOT_NODES in marks)

    items.sort(key=rank)
