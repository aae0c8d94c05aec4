"""The API server over plain HTTP and JSON, asynchronous.

Raw dictionaries and no typed models: the agent must stay below 48 MiB, and decoding thousands of pods into
model objects is what costs the typed clients their time. One pooled connection set for all requests; no retry
is hidden in here, because whether to try again depends on the deadline that the caller works against.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import aiohttp

Json = dict[str, Any]

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# kubelet rotates the projected token well before it expires; reading it once a minute is enough.
TOKEN_REFRESH_SECONDS: Final = 60.0

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server refused a request.

    ``code`` is the HTTP status, ``reason`` the machine-readable word (``NotFound``, ``Conflict`` …), ``message``
    the API server's own sentence, ``details`` its structured causes, ``retry_after`` seconds where it named them.
    """

    def __init__(
        self, code: int, reason: str, message: str, details: Json, retry_after: float | None
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after = retry_after

    def has_cause(self, reason: str) -> bool:
        """Whether the API server names this cause, such as ``DisruptionBudget``."""
        return any(cause.get("reason") == reason for cause in self.details.get("causes") or [])


@dataclass(frozen=True)
class Connection:
    """Where the API server is and how to be known there; made by :func:`in_cluster`."""

    server: str
    tls: ssl.SSLContext | None
    token_file: Path | None = None
    token: str | None = None


def in_cluster(host: str, port: str, directory: Path = SERVICE_ACCOUNT) -> Connection:
    """The connection of a pod: ``KUBERNETES_SERVICE_HOST`` and ``_PORT``, and the mounted service account.

    Raises ``FileNotFoundError`` where the pod has no service account token mounted.
    """
    token_file = directory / "token"
    if not token_file.exists():
        raise FileNotFoundError(
            f"{token_file}: this pod has no service account token (automountServiceAccountToken?)"
        )
    bracketed = f"[{host}]" if ":" in host else host
    tls = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    return Connection(f"https://{bracketed}:{port}", tls, token_file=token_file)


class ClockOffset:
    """The API server's clock minus ours, from ``Date`` headers, which are cut to whole seconds.

    Each answer only says that the offset lies in an interval a little over a second wide; their intersection
    narrows it. ``seconds`` is the value of that interval that is nearest to zero, so that clocks which agree
    are never corrected by noise. An empty intersection means that a clock was set: begin again.
    """

    def __init__(self) -> None:
        self._low, self._high = float("-inf"), float("inf")

    @property
    def seconds(self) -> float:
        """The correction, in seconds; 0 as long as nothing contradicts it."""
        return min(max(0.0, self._low), self._high)

    def note(self, date: str | None, sent: float, received: float) -> None:
        """One answer: its ``Date`` header, and our clock before the request and after the answer."""
        if not date:
            return
        stamp = _seconds(date)
        low, high = stamp - received, stamp + 1 - sent
        if low > self._high or high < self._low:
            self._low, self._high = low, high
        else:
            self._low, self._high = max(low, self._low), min(high, self._high)


class Client:
    """One connection pool to the API server.

    ``clock_offset`` is the API server's clock minus this machine's, in seconds, from the answers' ``Date``
    headers (:class:`ClockOffset`). ``observe`` is told of each request but watches, once it is over: its HTTP
    method, and the status code, or ``error`` where there was no whole answer. Use as an asynchronous context manager.
    """

    def __init__(
        self,
        connection: Connection,
        user_agent: str = "spot-training",
        timeout: float = 30.0,
        observe: Callable[[str, str], None] = lambda verb, code: None,
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._agent = user_agent
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None
        self._token: tuple[float, str] | None = None
        self._clock = ClockOffset()

    @property
    def clock_offset(self) -> float:
        """Seconds to add to this machine's clock to have the API server's."""
        return self._clock.seconds

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            # For the pods that an operator makes side by side, and what it asks and writes of other jobs meanwhile.
            connector=aiohttp.TCPConnector(limit=200, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=5),
            headers={"User-Agent": self._agent},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def get(self, path: str, **query: str) -> Json:
        """GET one object or one list."""
        return await self.request("GET", path, query=query)

    async def create(self, path: str, body: Json, **query: str) -> Json:
        """POST a new object; 409 AlreadyExists where the name is taken."""
        return await self.request("POST", path, body, query=query)

    async def patch(self, path: str, body: Json | list[Json], content_type: str = MERGE_PATCH) -> Json:
        """PATCH with the given kind of patch."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def delete(
        self, path: str, *, uid: str | None = None, grace: int | None = None, propagation: str | None = None
    ) -> Json:
        """DELETE, where ``uid`` makes sure that it is the object we saw, and ``grace`` is in seconds."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        if propagation is not None:
            body["propagationPolicy"] = propagation
        return await self.request("DELETE", path, body)

    async def request(
        self,
        method: str,
        path: str,
        body: Json | list[Json] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """One request, one answer.

        Raises :class:`ApiError` for what the API server refuses, ``aiohttp.ClientError`` or ``TimeoutError``
        where it cannot be reached.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = await self._headers()
        if data is not None:
            headers["Content-Type"] = content_type
        code = "error"
        sent = time.time()
        try:
            async with self._open().request(
                method,
                self._connection.server + path,
                params=query or None,
                data=data,
                headers=headers,
                ssl=self._connection.tls or True,
            ) as response:
                self._clock.note(response.headers.get("Date"), sent, time.time())
                text = await response.read()
                code = str(response.status)
        finally:
            self._observe(method, code)
        if response.status >= 400:
            raise _error(response.status, response.headers.get("Retry-After"), text)
        answer: Json = json.loads(text)
        return answer

    async def watch(self, path: str, resource_version: str, **query: str) -> AsyncGenerator[Json, None]:
        """The events of a watch, from ``resource_version`` on, until the server or the network ends it.

        Raises :class:`ApiError` with code 410 where the version is too old: list again.
        """
        query |= {"watch": "true", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=330)
        async with self._open().request(
            "GET",
            self._connection.server + path,
            params={"timeoutSeconds": "300", **query},
            headers=await self._headers(),
            ssl=self._connection.tls or True,
            timeout=timeout,
        ) as response:
            if response.status >= 400:
                raise _error(response.status, response.headers.get("Retry-After"), await response.read())
            buffer = b""
            async for chunk in response.content.iter_any():
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    event: Json = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _error(int(status.get("code", 500)), None, json.dumps(status).encode())
                    yield event

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as `async with Client(…)`")
        return self._session

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._connection.token:
            headers["Authorization"] = f"Bearer {self._connection.token}"
        elif self._connection.token_file:
            now = asyncio.get_running_loop().time()
            if self._token is None or now - self._token[0] > TOKEN_REFRESH_SECONDS:
                text = await asyncio.to_thread(self._connection.token_file.read_text)
                self._token = (now, text.strip())
            headers["Authorization"] = f"Bearer {self._token[1]}"
        return headers


@lru_cache(maxsize=4)
def _seconds(date: str) -> float:
    """Seconds since the epoch of a ``Date`` header. Hundreds of answers in a second bear the same one."""
    return parsedate_to_datetime(date).timestamp()


def _error(code: int, retry_after: str | None, text: bytes) -> ApiError:
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        status = {"message": text[:200].decode(errors="replace")}
    details = status.get("details") or {}
    seconds = retry_after if retry_after and retry_after.isdigit() else details.get("retryAfterSeconds")
    return ApiError(
        code,
        str(status.get("reason") or "Unknown"),
        str(status.get("message") or ""),
        details,
        float(seconds) if seconds else None,
    )


def job_path(namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of the SpotTrainingJobs of a namespace, of one of them, or of its subresource."""
    return _path(f"/apis/spot.training/v1alpha1/namespaces/{namespace}/spottrainingjobs", name, subresource)


def core_path(namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    """The path of core/v1 objects in a namespace: ``pods``, ``services``, ``persistentvolumeclaims``, ``events``."""
    return _path(f"/api/v1/namespaces/{namespace}/{plural}", name, subresource)


def node_path(name: str = "", subresource: str = "") -> str:
    """The path of the Nodes, of one of them, or of its subresource."""
    return _path("/api/v1/nodes", name, subresource)


def _path(*parts: str) -> str:
    return "/".join(part for part in parts if part)
