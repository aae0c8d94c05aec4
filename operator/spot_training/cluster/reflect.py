"""One collection of the API server, followed: listed page by page, then watched, and listed again where it must be.

What a watch did not tell of, because it was broken when it happened, shows only in the next list: so a list has a
beginning and an end of its own, between which all that there is comes by.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import aiohttp

from spot_training.cluster.client import ApiError, Client, Json

logger = logging.getLogger(__name__)

LISTING: Final = "LISTING"
LISTED: Final = "LISTED"
PAGE: Final = "500"
EXPIRED: Final = 410
LONGEST_WAIT_SECONDS: Final = 8.0


async def reflect(
    client: Client,
    path: str,
    *,
    relist_seconds: float = float("inf"),
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[tuple[str, Json]]:
    """Yield what happens in a collection, for ever, as ``(type, object)``.

    ``LISTING``, then each object there is as ``MODIFIED``, then ``LISTED`` with the list's own version: what was known
    at ``LISTING`` and did not come by is gone. Then the watch's own ``ADDED``, ``MODIFIED`` and ``DELETED``, until the
    API server no longer remembers where the watch was (410), or the next list is due; a watch that merely ends goes on
    where it was.
    Errors are logged and tried again, later each time, up to eight seconds.
    """
    loop = asyncio.get_running_loop()
    version: str | None = None
    due = 0.0
    failures = 0
    while True:
        try:
            if version is None or loop.time() >= due:
                version = None
                yield LISTING, {}
                async for page in _pages(client, path):
                    for each in page.get("items") or ():
                        yield "MODIFIED", each
                version = str(page["metadata"]["resourceVersion"])
                due = loop.time() + relist_seconds
                yield LISTED, {"metadata": {"resourceVersion": version}}
            began = loop.time()
            async with aclosing(client.watch(path, version)) as events:
                async for event in events:
                    version = str(event["object"]["metadata"]["resourceVersion"])
                    failures = 0
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
                    if loop.time() >= due:
                        break
            failures = 0
            if loop.time() - began < 1.0:
                # An API server that is going down ends every watch at once.
                await sleep(1.0)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if isinstance(error, ApiError) and error.code == EXPIRED:
                version = None
            failures += 1
            wait = min(LONGEST_WAIT_SECONDS, 0.25 * 2.0 ** min(failures, 8))
            if not (isinstance(error, ApiError) and error.code == EXPIRED):
                logger.warning("cannot follow %s, again in %.1f s: %s", path, wait, error)
            await sleep(wait)


async def _pages(client: Client, path: str) -> AsyncIterator[Json]:
    query = {"limit": PAGE}
    while True:
        page = await client.get(path, **query)
        yield page
        if not page["metadata"].get("continue"):
            return
        query["continue"] = page["metadata"]["continue"]
