"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Callable


async def until(what: str, condition: Callable[[], bool], seen: Callable[[], object]) -> None:
    """Return as soon as `condition` holds; fail with what was seen last when it does not come."""
    try:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - any condition, not an event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come; seen last: {seen()}") from None
