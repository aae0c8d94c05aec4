"""A small API server in memory, over real HTTP: what the agent uses of it, and every way in which it can fail.

Nodes have resource versions and refuse stale patches; pods take their time to stop; budgets refuse evictions.
"""

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import jsonpatch
from aiohttp import web
from aiohttp.test_utils import TestServer

from spot_training.api.times import format_time, parse_time
from spot_training.cluster.client import Connection

Json = dict[str, Any]
Fault = Callable[[web.Request], web.StreamResponse | None]


class Api:
    """The cluster. A test changes it as others would: `add_pod`, `bump`, `nodes.clear()`.

    `stops` says how many seconds a pod takes to end after it was told (0 unless said; never more than its grace).
    `budgets` names pods whose eviction is refused. `fault` sees every request first and may answer it. `skew` is
    how far this server's clock is ahead. `told` is what was asked of each pod: (request, grace). `requests` lists
    method and path of all that came, `writes` those that were carried out.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.events: list[Json] = []
        self.stops: dict[str, float] = {}
        self.budgets: set[str] = set()
        self.fault: Fault = lambda _: None
        self.wrote: Callable[[], None] = lambda: None
        self.skew = 0.0
        self.told: dict[str, list[tuple[str, int]]] = {}
        self.requests: list[str] = []
        self.writes: list[str] = []
        self._version = 100
        self._history: list[tuple[int, Json]] = []
        self._lists: dict[str, list[Json]] = {}
        self._watches: list[asyncio.Queue[Json | None]] = []
        self._url = ""

    @property
    def connection(self) -> Connection:
        return Connection(self._url, None, token="t")

    def now(self) -> float:
        return time.time() + self.skew

    def add_node(self, name: str, **spec: object) -> Json:
        node: Json = {
            "metadata": {"name": name, "uid": f"uid-{name}"},
            "spec": spec,
            "status": {"conditions": []},
        }
        self.nodes[name] = node
        self.bump(node)
        return node

    def add_pod(
        self, name: str, *, node: str, owner: str = "ReplicaSet", phase: str = "Running", **spec: Any
    ) -> None:
        labels = {"spot.training/job": "resnet"} if spec.pop("job", False) else {}
        pod = {
            "metadata": {
                "namespace": "ns",
                "name": name,
                "uid": f"uid-{name}",
                "labels": labels,
                "ownerReferences": [{"kind": owner, "controller": True}],
            },
            "spec": {"nodeName": node, "containers": [{}], **spec},
            "status": {"phase": phase, "containerStatuses": [{"state": {"running": {}}}]},
        }
        self.pods[name] = pod
        self._show("ADDED", pod)

    def add_unseen_pod(self, name: str, *, node: str, **spec: Any) -> None:
        """A pod that no watch tells of, as over a connection that has died unnoticed."""
        watches, self._watches = self._watches, []
        self.add_pod(name, node=node, **spec)
        self._watches = watches

    def bump(self, item: Json) -> None:
        """Somebody has changed the object."""
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)

    def end_watches(self) -> None:
        """Break off every watch, as a server that restarts does."""
        for queue in self._watches:
            queue.put_nowait(None)

    def leaving(self) -> list[str]:
        """The pods that no DaemonSet owns."""
        return [
            name
            for name, pod in self.pods.items()
            if pod["metadata"]["ownerReferences"][0]["kind"] != "DaemonSet"
        ]

    def conditions(self, node: str) -> dict[str, str]:
        return {one["type"]: one["status"] for one in self.nodes[node]["status"]["conditions"]}

    def _show(self, kind: str, pod: Json) -> None:
        self.bump(pod)
        event = {"type": kind, "object": copy.deepcopy(pod)}
        self._history.append((self._version, event))
        for queue in self._watches:
            queue.put_nowait(event)

    def _stop(self, name: str, grace: int) -> None:
        pod = self.pods[name]
        metadata = pod["metadata"]
        if metadata.get("deletionGracePeriodSeconds", grace + 1) <= grace:
            return
        began = self.now()
        if "deletionTimestamp" in metadata:
            began = parse_time(metadata["deletionTimestamp"]) - metadata["deletionGracePeriodSeconds"]
        metadata["deletionTimestamp"] = format_time(began + grace).split(".")[0] + "Z"
        metadata["deletionGracePeriodSeconds"] = grace
        self._show("MODIFIED", pod)
        asyncio.get_running_loop().call_later(min(self.stops.get(name, 0.0), grace), self._end, pod)

    def _end(self, pod: Json) -> None:
        if self.pods.get(pod["metadata"]["name"]) is pod:
            del self.pods[pod["metadata"]["name"]]
            self._show("DELETED", pod)

    # What comes over HTTP.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        response = self.fault(request) or await self._dispatch(request)
        if not response.prepared:
            response.headers["Date"] = formatdate(self.now(), usegmt=True)
        return response

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        parts = request.path.strip("/").split("/")
        answer: web.StreamResponse
        match [request.method, *parts]:
            case ["GET", "api", "v1", "pods"]:
                return await (self._watch(request) if "watch" in request.query else self._list(request))
            case ["GET", "api", "v1", "nodes", name]:
                return web.json_response(self.nodes[name]) if name in self.nodes else _status(404, "NotFound")
            case ["PATCH", "api", "v1", "nodes", name, *sub]:
                answer = self._patch_node(name, sub, json.loads(body))
            case ["PATCH", "api", "v1", "namespaces", "ns", "pods", name, "status"]:
                answer = self._patch_pod(name, json.loads(body))
            case ["DELETE", "api", "v1", "namespaces", "ns", "pods", name]:
                answer = self._delete(name, json.loads(body))
            case ["POST", "api", "v1", "namespaces", "ns", "pods", name, "eviction"]:
                answer = self._evict(name, json.loads(body))
            case ["POST", "apis", "events.k8s.io", "v1", "namespaces", "default", "events"]:
                event = json.loads(body)
                if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?-?", event["metadata"]["generateName"]):
                    return _status(422, "Invalid", "metadata.generateName: Invalid value")
                self.events.append(event)
                return web.json_response({}, status=201)
            case _:
                return _status(404, "NotFound", f"no route {request.method} {request.path}")
        if answer.status < 300:
            self.writes.append(f"{request.method} {request.path}")
            self.wrote()
        return answer

    async def _list(self, request: web.Request) -> web.Response:
        # As the real one: all pages show the state in which the first was asked for.
        version, _, offset = request.query.get("continue", "").partition(":")
        if not version:
            version = str(self._version)
            self._lists[version] = [
                copy.deepcopy(pod) for pod in self.pods.values() if self._selected(request, pod)
            ]
        found, begin, limit = self._lists[version], int(offset or 0), int(request.query.get("limit", "500"))
        more = f"{version}:{begin + limit}" if begin + limit < len(found) else ""
        metadata = {"resourceVersion": version, "continue": more}
        return web.json_response({"metadata": metadata, "items": found[begin : begin + limit]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        since = int(request.query["resourceVersion"])
        for version, past in self._history:
            if version > since:
                queue.put_nowait(past)
        self._watches.append(queue)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        response.headers["Date"] = formatdate(self.now(), usegmt=True)
        await response.prepare(request)
        try:
            while (event := await queue.get()) is not None:
                if self._selected(request, event["object"]):
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.remove(queue)
        return response

    def _selected(self, request: web.Request, pod: Json) -> bool:
        return request.query["fieldSelector"] == f"spec.nodeName={pod['spec']['nodeName']}"

    def _patch_node(self, name: str, sub: list[str], patch: Any) -> web.Response:
        node = self.nodes.get(name)
        if node is None:
            return _status(404, "NotFound")
        if sub == ["status"]:
            present = {one["type"]: one for one in node["status"]["conditions"]}
            for one in patch["status"]["conditions"]:
                present[one["type"]] = one
            node["status"]["conditions"] = list(present.values())
            self.bump(node)
            return web.json_response(node)
        try:
            changed: Json = jsonpatch.apply_patch(node, patch)
        except jsonpatch.JsonPatchException as error:
            return _status(422, "Invalid", str(error))
        if changed["metadata"]["resourceVersion"] != node["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        self.nodes[name] = changed
        self.bump(changed)
        return web.json_response(changed)

    def _patch_pod(self, name: str, patch: Json) -> web.Response:
        pod = self.pods.get(name)
        if pod is None or pod["metadata"]["uid"] != patch["metadata"]["uid"]:
            return _status(404, "NotFound")
        pod["status"].setdefault("conditions", []).extend(patch["status"]["conditions"])
        self._show("MODIFIED", pod)
        return web.json_response(pod)

    def _delete(self, name: str, options: Json) -> web.Response:
        pod = self.pods.get(name)
        if pod is None:
            return _status(404, "NotFound")
        if options.get("preconditions", {}).get("uid", pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
            return _status(409, "Conflict", "the UID in the precondition does not match")
        grace = options.get("gracePeriodSeconds", 30)
        self.told.setdefault(name, []).append(("delete", grace))
        self._stop(name, grace)
        return web.json_response({})

    def _evict(self, name: str, eviction: Json) -> web.Response:
        if name not in self.pods:
            return _status(404, "NotFound")
        if name in self.budgets:
            self.told.setdefault(name, []).append(("refused", 0))
            details = {"causes": [{"reason": "DisruptionBudget"}]}
            return _status(429, "TooManyRequests", "Cannot evict pod", details)
        options = eviction["deleteOptions"]
        if options.get("preconditions", {}).get("uid", f"uid-{name}") != self.pods[name]["metadata"]["uid"]:
            return _status(409, "Conflict", "the UID in the precondition does not match")
        grace = options["gracePeriodSeconds"]
        self.told.setdefault(name, []).append(("evict", grace))
        self._stop(name, grace)
        return web.json_response({}, status=201)


def _status(code: int, reason: str, message: str = "", details: Json | None = None) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details or {}}
    return web.json_response(body, status=code)


def broken(code: int = 503) -> web.Response:
    """The answer of an API server, or of something before it, that cannot."""
    return web.Response(status=code, text="upstream connect error")


@asynccontextmanager
async def running(api: Api) -> AsyncIterator[Api]:
    """The API server, listening on a port of its own."""
    app = web.Application(client_max_size=2**20)
    app.router.add_route("*", "/{path:.*}", api.handle)
    async with TestServer(app) as server:
        api._url = str(server.make_url("")).rstrip("/")
        try:
            yield api
        finally:
            api.end_watches()
