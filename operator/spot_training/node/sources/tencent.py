"""Tencent Cloud CVM: ``spot/termination-time``.

404 while nothing is scheduled, else a time such as ``2018-08-18 12:05:33``, two minutes ahead, in UTC+8 without saying
so (Tencent's page "Querying Spot Instance Repossession Status").
"""

from datetime import datetime, timedelta, timezone
from typing import Final

import aiohttp

from spot_training.node.notice import Limits
from spot_training.node.sources.dated import Dated

NAME: Final = "tencent"
ADDRESS: Final = "http://metadata.tencentyun.com"
LIMITS: Final = Limits(minimum=120.0, horizon=600.0)
ZONE: Final = timezone(timedelta(hours=8))


def tencent(address: str = ADDRESS) -> Dated:
    """The source behind the metadata service at this address."""
    url = f"{address}/latest/meta-data/spot/termination-time"
    return Dated(NAME, url, LIMITS, aiohttp.TCPConnector, parse_local_time)


def parse_local_time(body: str) -> float:
    """Seconds since the epoch of a time in UTC+8 that names no zone; ``ValueError`` for all else."""
    return datetime.strptime(body.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=ZONE).timestamp()
