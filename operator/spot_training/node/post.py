"""One POST of JSON to somebody else's server: bounded in time, no redirect followed, TLS verified."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

AGENT: Final = "spot-training-agent"


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of it: the HTTP status, or 0 and why there is none; and the server's ``Retry-After`` in seconds.

    ``why`` names no URL: that of a webhook is a secret.
    """

    status: int
    why: str = ""
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether the server took it. A redirect is none: it could lead anywhere."""
        return 200 <= self.status < 300


def check_url(url: str) -> str:
    """The URL itself; ``ValueError``, which does not repeat it, where it is none that can be posted to."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or any(not "!" <= sign <= "~" for sign in url):
        raise ValueError("not a URL that begins with http:// or https:// and names a host")
    return url


async def post(url: str, body: Any, seconds: float) -> Posted:
    """POST the body, within so many seconds in all; never raises for what the other side does."""
    data = json.dumps(body, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/json", "User-Agent": AGENT}
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(url, data=data, headers=headers, allow_redirects=False) as response,
        ):
            after = response.headers.get("Retry-After", "")
            why = f"HTTP status {response.status}"
            return Posted(response.status, why, float(after) if after.isdecimal() else None)
    except TimeoutError:
        return Posted(0, f"no answer within {seconds:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Posted(0, type(error).__name__)
