"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Callable


async def until(
    what: str, condition: Callable[[], bool], seen: Callable[[], object], within: float = 10.0
) -> None:
    """Return as soon as `condition` holds; fail with what was seen last when it does not come in so many seconds."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - any condition, not an event
                await asyncio.sleep(within / 2000)
    except TimeoutError:
        raise AssertionError(f"{what} did not come; seen last: {seen()}") from None
