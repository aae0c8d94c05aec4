"""The node agent: how soon it cordons, whether a full node is empty in time, what it costs at rest.

    python -m tests.bench.agent [idle|polled|waiting|daemonset|mass|drain …]

Needs the cluster with the project installed (`make install`). Without words all parts run, twelve minutes; some of them
report under a name of their own.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from tests.bench import agent_node, agent_notice
from tests.bench.report import Report

PARTS: Final[dict[str, Callable[[Report], Awaitable[None]]]] = {
    "idle": agent_node.idle,
    "polled": agent_notice.polled,
    "waiting": agent_notice.long_polled,
    "daemonset": agent_node.polled,
    "mass": agent_notice.mass,
    "drain": agent_node.drain,
}


async def measure(parts: list[str]) -> None:
    """Run these parts in order; what was measured before one fails is reported all the same."""
    report = Report("-".join(["agent", *(parts if parts != list(PARTS) else ())]))
    try:
        for part in parts:
            await PARTS[part](report)
    finally:
        report.finish()


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    if not set(chosen) <= set(PARTS):
        sys.exit(f"usage: python -m tests.bench.agent [{'|'.join(PARTS)} …]")
    # What the agents in this process would tell their log is not for the table's reader.
    logging.getLogger("spot_training").addHandler(logging.NullHandler())
    asyncio.run(measure(chosen))
