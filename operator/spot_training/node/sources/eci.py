"""ECI: the guest agent of the machine itself, over a Unix socket.

``GET http://localhost/vm/metadata?key=spot_termination_time`` answers 404 while nothing is scheduled, and a JSON
string with an ISO 8601 time, ``"2026-04-08T05:00:00+00:00"``, from one to two minutes before the machine is taken.
"""

import json
from typing import Final

import aiohttp

from spot_training.api.times import parse_time
from spot_training.node.notice import Limits
from spot_training.node.sources.dated import Dated

NAME: Final = "eci"
URL: Final = "http://localhost/vm/metadata?key=spot_termination_time"

LIMITS: Final = Limits(minimum=60.0, horizon=300.0)
"""Documented are one to two minutes. Five leave room for clocks that differ, and no wrong time zone fits in."""


def eci(socket: str) -> Dated:
    """The source behind the guest agent's socket."""
    return Dated(
        NAME, URL, LIMITS, lambda: aiohttp.UnixConnector(socket, force_close=True), parse_quoted_time
    )


def parse_quoted_time(body: str) -> float:
    """Seconds since the epoch of a time in double quotes that names its zone; ``ValueError`` for all else."""
    text = json.loads(body)
    if not isinstance(text, str):
        raise ValueError("not a JSON string")
    return parse_time(text)
