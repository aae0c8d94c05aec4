"""Threads that take a share of a piece of work, and stay for the next piece."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Helpers:
    """Up to `count` threads beside the one that asks; none before there is work for it.

    They stay until `close`: starting one for every few megabytes takes longer than those. Not `concurrent.futures`,
    whose pools take no work any more once the main thread is at its end, when a last save may still be on its way.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._work: queue.SimpleQueue[tuple[Callable[[int], None], int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def share(self, work: Callable[[int], None], count: int) -> None:
        """Call ``work(0)`` here, and ``work(1)`` to ``work(count - 1)`` in the helpers, at the same time.

        Waits for all. Raises what ``work(0)`` raises, else what one of the others does.
        """
        while len(self._threads) < min(self._count, count - 1):
            thread = threading.Thread(target=self._serve, name="spot-training-helper")
            thread.start()
            self._threads.append(thread)
        for number in range(1, count):
            self._work.put((work, number))
        try:
            work(0)
        finally:
            failures = [failure for _ in range(1, count) if (failure := self._done.get())]
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Let the threads end."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _serve(self) -> None:
        while item := self._work.get():
            work, number = item
            try:
                work(number)
            except BaseException as error:
                self._done.put(error)
            else:
                self._done.put(None)
