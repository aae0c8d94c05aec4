"""Alibaba Cloud ECS: ``instance/spot/termination-time``, with the token of the hardened mode.

404 while nothing is scheduled, else a time in UTC such as ``2015-01-05T18:02:00Z``, about five minutes ahead
(Alibaba's page "Query the interruption events of preemptible instances"). The token is taken where the hardened mode is
not on, too: the service gives it in both.
"""

from typing import Final

import aiohttp

from spot_training.api.times import parse_time
from spot_training.node.notice import Limits
from spot_training.node.sources.dated import Dated
from spot_training.node.sources.fetch import Token

NAME: Final = "alibaba"
ADDRESS: Final = "http://100.100.100.200"
LIMITS: Final = Limits(minimum=300.0, horizon=900.0)


def alibaba(address: str = ADDRESS) -> Dated:
    """The source behind the metadata service at this address."""
    token = Token(
        f"{address}/latest/api/token",
        "X-aliyun-ecs-metadata-token-ttl-seconds",
        "X-aliyun-ecs-metadata-token",
    )
    url = f"{address}/latest/meta-data/instance/spot/termination-time"
    return Dated(NAME, url, LIMITS, aiohttp.TCPConnector, lambda body: parse_time(body.strip()), token)
