"""A small API server over real HTTP: what the operator and kopf use of it, with watches that can be broken.

Objects have resource versions, and stale writes are refused. `compact` forgets the events so far: a watch that wants
to go on from before is told 410, as after a few minutes without connection.
"""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from spot_training.cluster.client import Connection
from tests.unit.control.objects import Json, merged

SPOT = "/apis/spot.training/v1alpha1"
GROUPS = {
    "/api/v1": [
        "namespaces",
        "nodes",
        "pods",
        "persistentvolumeclaims",
        "persistentvolumes",
        "services",
        "events",
    ],
    SPOT: ["spottrainingjobs", "spotpools"],
    "/apis/coordination.k8s.io/v1": ["leases"],
}
CLUSTER_WIDE = ("namespaces", "nodes", "persistentvolumes", "spotpools")
Fault = Callable[[web.Request], web.StreamResponse | None]
Key = tuple[str, str]


class Server:
    """The cluster. `fault` sees every request first and may answer it; `writes` are those that were carried out."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[Key, Json]] = {name: {} for names in GROUPS.values() for name in names}
        self.fault: Fault = lambda _: None
        self.writes: list[tuple[str, str, Json]] = []
        self.watches: list[tuple[str, bool]] = []
        """Of each watch that was begun: its kind, and whether it was told 410."""
        self.lagging = False
        """While this is true no watch brings anything."""
        self._version = 100
        self._compacted = 0
        self._uids = 0
        self._log: list[tuple[int, str, Json]] = []
        self._streams: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Condition()
        self._url = ""

    @property
    def connection(self) -> Connection:
        return Connection(self._url, None, token="t")

    def kubeconfig(self, path: Path) -> Path:
        """For kopf, which finds its own way in."""
        made = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self._url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        path.write_text(json.dumps(made))
        return path

    # What others do

    def put(self, kind: str, raw: Json) -> Json:
        """Make an object, or change it."""
        meta = raw["metadata"]
        key = meta.get("namespace", ""), meta["name"]
        there = key in self.objects[kind]
        if "uid" not in meta:
            self._uids += 1
            meta["uid"] = f"uid-{self._uids}"
        self.objects[kind][key] = raw
        return self._tell(kind, "MODIFIED" if there else "ADDED", raw)

    def remove(self, kind: str, name: str, namespace: str = "") -> Json:
        return self._tell(kind, "DELETED", self.objects[kind].pop((namespace, name)))

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return self.objects[kind][namespace, name]

    def break_watches(self) -> None:
        """All watches lose their connection."""
        for task in self._streams:
            task.cancel()

    def compact(self) -> None:
        """No watch can go on from what was before now."""
        self._compacted = self._version

    def _tell(self, kind: str, type_: str, raw: Json) -> Json:
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, kind, {"type": type_, "object": copy.deepcopy(raw)}))
        asyncio.get_running_loop().create_task(self._notify())
        return raw

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    # What it answers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        made = self.fault(request)
        if made is not None:
            return made
        for prefix, kinds in GROUPS.items():
            if request.path == prefix:
                return web.json_response({"resources": [_described(each) for each in kinds]})
            if request.path.startswith(prefix + "/"):
                return await self._of_group(request, request.path.removeprefix(prefix + "/").split("/"))
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            return web.json_response({"groups": [_group(each) for each in GROUPS if each != "/api/v1"]})
        return refusal(404, "NotFound", request.path)

    async def _of_group(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        kind, name = parts[0], parts[1] if len(parts) > 1 else ""
        if kind not in self.objects:
            return refusal(404, "NotFound", "the server could not find the requested resource")
        if request.query.get("watch"):
            return await self._watch(request, kind)
        body = await request.json() if request.can_read_body else {}
        if request.method == "POST":
            return self._create(request, kind, namespace, body)
        if request.method == "GET" and not name:
            return self._list(request, kind, namespace)
        raw = self.objects[kind].get((namespace, name))
        if raw is None:
            return refusal(404, "NotFound", f"{kind} {name} not found")
        if request.method == "GET":
            return web.json_response(raw)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version not in (None, raw["metadata"]["resourceVersion"]):
            return refusal(409, "Conflict", "the object has been modified")
        self.writes.append((request.method, request.path, body))
        if request.method == "DELETE":
            return web.json_response(self.remove(kind, name, namespace))
        new = body if request.method == "PUT" else merged(raw, body)
        return web.json_response(self.put(kind, new | {"metadata": {**raw["metadata"], **new["metadata"]}}))

    def _create(self, request: web.Request, kind: str, namespace: str, body: Json) -> web.StreamResponse:
        key = namespace, body["metadata"]["name"]
        if key in self.objects[kind]:
            return refusal(409, "AlreadyExists", f"{kind} {key[1]} already exists")
        if request.query.get("dryRun"):
            return web.json_response(body)
        self.writes.append(("POST", request.path, body))
        body["metadata"] |= {"namespace": namespace, "creationTimestamp": "2026-04-08T05:00:00Z"}
        if kind == "pods":
            body["status"] = {"phase": "Pending"}
        return web.json_response(self.put(kind, body), status=201)

    def _list(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        wanted = dict(each.split("=") for each in request.query.get("labelSelector", "").split(",") if each)
        items = [
            raw
            for (where, _), raw in self.objects[kind].items()
            if namespace in ("", where) and wanted.items() <= (raw["metadata"].get("labels") or {}).items()
        ]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        gone = since < self._compacted
        self.watches.append((kind, gone))
        if gone:
            status = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": "too old resource version",
            }
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        task = asyncio.ensure_future(self._stream(response, kind, since))
        self._streams.add(task)
        try:
            await task
        except (asyncio.CancelledError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._streams.discard(task)
        return response

    async def _stream(self, response: web.StreamResponse, kind: str, since: int) -> None:
        sent = 0
        while True:
            async with self._news:
                while self.lagging or len(self._log) == sent:
                    await self._news.wait()
            fresh = self._log[sent:]
            sent += len(fresh)
            for version, of, event in fresh:
                if version > since and of == kind:
                    await response.write(json.dumps(event).encode() + b"\n")


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    server = TestServer(app)
    await server.start_server()
    made._url = str(server.make_url("")).rstrip("/")
    try:
        yield made
    finally:
        made.break_watches()
        await server.close()


def refusal(code: int, reason: str, message: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "code": code, "reason": reason, "message": message}, status=code
    )


def _described(kind: str) -> Json:
    return {
        "name": kind,
        "kind": kind,
        "singularName": kind,
        "namespaced": kind not in CLUSTER_WIDE,
        "verbs": ["get", "list", "watch", "patch"],
    }


def _group(prefix: str) -> Json:
    _, _, name, version = prefix.split("/")
    return {
        "name": name,
        "versions": [{"version": version, "groupVersion": f"{name}/{version}"}],
        "preferredVersion": {"version": version, "groupVersion": f"{name}/{version}"},
    }
