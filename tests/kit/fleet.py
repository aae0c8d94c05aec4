"""Many nodes, each with an agent that is known to the API server as the agent of that node and no other.

The nodes are plain Node objects without a machine. A DaemonSet with the agents' service account puts a pod on each,
which never starts; what such a pod would have is its token, bound to the pod and so to the node, and that is what the
agents here use: the chart's admission policies judge them as they judge real ones.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from spot_training.api import names
from spot_training.cluster.client import JSON_PATCH, ApiError, Client, Connection, core_path, node_path
from spot_training.node.agent import Agent
from spot_training.node.metrics import Metrics
from spot_training.node.situation import Settings
from spot_training.node.sources import Source
from tests.kit import install, reach

Json = dict[str, Any]
Made = TypeVar("Made")

LABEL: Final = "fleet.test/name"
POOL_TAINT: Final = {"key": LABEL, "effect": "NoSchedule"}
PATIENCE_SECONDS: Final = 60.0
AT_ONCE: Final = 16
"""Requests under way together while the nodes are made: the API server has its own work to do."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A taint that a watch showed on a Node and then no more, by its key: the Node before and after."""

    key: str
    before: Json
    after: Json

    def __str__(self) -> str:
        name = self.before["metadata"]["name"]
        return f"{name} lost {self.key}; before: {told(self.before)}; after: {told(self.after)}"


@dataclass
class Member:
    """One node and its agent's way to the API server.

    What a watch last saw of the Node: ``node``; ``cordoned_at`` is the monotonic time at which it told of the present
    cordon with the agent's taint, None while there is none; ``losses`` are the taints that were there and
    then were not. ``codes`` counts the agent's requests by method and status.
    """

    name: str
    connection: Connection
    node: Json = field(default_factory=dict)
    cordoned_at: float | None = None
    losses: list[Loss] = field(default_factory=list)
    codes: dict[tuple[str, str], int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def taints(self) -> set[str]:
        """The keys of the Node's taints."""
        return {taint["key"] for taint in self.node.get("spec", {}).get("taints") or []}

    @property
    def cordoned(self) -> bool:
        """Whether the Node is unschedulable."""
        return bool(self.node.get("spec", {}).get("unschedulable"))

    @property
    def marked(self) -> bool:
        """Whether the Node bears the agent's taint and is cordoned."""
        return self.cordoned and names.TAINT_RECLAIM in self.taints

    def lost(self, keys: Set[str]) -> list[str]:
        """Those of these taints that were there and then were not, once for each time, with what was seen."""
        return [str(loss) for loss in self.losses if loss.key in keys]

    def missing(self, keys: Set[str]) -> list[str]:
        """Those of these taints that are not there now, with what is."""
        return [f"{self.name} has no {key}: {told(self.node)}" for key in sorted(keys - self.taints)]

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Return when the watch has shown that; TimeoutError with what it showed instead."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    await self.changed.wait()
                    self.changed.clear()
        except TimeoutError:
            raise TimeoutError(f"{self.name}: {what} did not come; seen last: {self.node}") from None

    def observed(self, method: str, code: str) -> None:
        """One request of the agent."""
        self.codes[method, code] = self.codes.get((method, code), 0) + 1

    def saw(self, node: Json) -> None:
        """The watch tells of the Node as it is now."""
        before, taints = self.node, self.taints
        self.node = node
        self.losses += [Loss(key, before, node) for key in sorted(taints - self.taints)]
        if not self.marked:
            self.cordoned_at = None
        elif self.cordoned_at is None:
            self.cordoned_at = time.monotonic()
        self.changed.set()


def told(node: Json) -> str:
    """What a Node tells of its taints: which, in which version, and who wrote it when, the last first.

    A writer is a manager of its fields; the one whose write made the list of taints what it is bears a star.
    """
    meta, spec = node["metadata"], node.get("spec", {})
    taints = (
        ", ".join(f"{taint['key']}:{taint['effect']}" for taint in spec.get("taints") or []) or "no taint"
    )
    writers = []
    for entry in sorted(
        meta.get("managedFields") or [], key=lambda entry: entry.get("time", ""), reverse=True
    ):
        words = [entry["manager"], entry["operation"], entry.get("subresource"), entry.get("time")]
        star = "*" if "f:taints" in entry.get("fieldsV1", {}).get("f:spec", {}) else ""
        writers.append(star + " ".join(word for word in words if word))
    by = ", ".join(writers) or "nobody known"
    return f"[{taints}], version {meta['resourceVersion']}, written by {by}"


@asynccontextmanager
async def members(name: str, count: int) -> AsyncIterator[tuple[Client, list[Member]]]:
    """So many nodes for the length of the block, watched; and the administrator's client."""
    async with Client(reach.administrator()) as admin:
        nodes = [f"{name}-{index:03}" for index in range(count)]
        try:
            await _each([_make_node(admin, name, node) for node in nodes])
            await admin.create(f"/apis/apps/v1/namespaces/{install.NAMESPACE}/daemonsets", _daemon_set(name))
            pods = await _pods(admin, name, count)
            nobody = reach.nobody()
            tokens = await _each([_token(admin, pod) for pod in pods])
            found = {
                pod["spec"]["nodeName"]: Member(pod["spec"]["nodeName"], replace(nobody, token=token))
                for pod, token in zip(pods, tokens, strict=True)
            }
            async with watched(admin, f"{LABEL}={name}", found):
                yield admin, [found[node] for node in nodes]
        finally:
            await _remove(admin, name, nodes)


@asynccontextmanager
async def watched(admin: Client, selector: str, found: dict[str, Member]) -> AsyncIterator[None]:
    """Tell each of these members of its Node, by name, for the length of the block."""
    listed = await admin.get(node_path(), labelSelector=selector)
    for node in listed["items"]:
        found[node["metadata"]["name"]].saw(node)

    async def watch(version: str) -> None:
        while True:
            async for event in admin.watch(node_path(), version, labelSelector=selector):
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] in ("ADDED", "MODIFIED"):
                    found[event["object"]["metadata"]["name"]].saw(event["object"])

    watching = asyncio.create_task(watch(listed["metadata"]["resourceVersion"]))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def add_taint(admin: Client, node: str, taint: Json) -> None:
    """Taint a node as any controller should: bound to what was read, and again where that was no longer so."""
    while True:
        version = (await admin.get(node_path(node)))["metadata"]["resourceVersion"]
        patch: list[Json] = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/spec/taints/-", "value": taint},
        ]
        try:
            await admin.patch(node_path(node), patch, JSON_PATCH)
        except ApiError as error:
            if error.code != 409:
                raise
        else:
            return


@asynccontextmanager
async def agents(
    chosen: Sequence[tuple[Member, Source]], poll_seconds: float = 1.0
) -> AsyncIterator[list[Agent]]:
    """An agent at work on each of these members, until the end of the block; each has looked at its Node."""
    tasks: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        made = []
        for member, source in chosen:
            client = Client(member.connection, "spot-training-agent", 5.0, member.observed)
            await stack.enter_async_context(client)
            made.append(Agent(Settings(member.name, poll_seconds), client, source, Metrics()))
        try:
            for agent in made:
                tasks.append(asyncio.create_task(agent.run()))
                # Apart from one another, as they are on machines of their own.
                await asyncio.sleep(poll_seconds / len(made))
            async with asyncio.timeout(60):
                for agent in made:
                    await agent.situation.recalled.wait()
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _each(work: Sequence[Awaitable[Made]]) -> list[Made]:
    """Do all of it, only so much at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(each: Awaitable[Made]) -> Made:
        async with gate:
            return await each

    return await asyncio.gather(*(one(each) for each in work))


async def _make_node(admin: Client, name: str, node: str) -> None:
    room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    await admin.create(
        node_path(),
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "labels": {LABEL: name}},
            "spec": {"taints": [POOL_TAINT]},
            "status": {"capacity": room, "allocatable": room},
        },
    )


def _daemon_set(name: str) -> Json:
    labels = {LABEL: name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": f"{install.RELEASE}-agent",
                    "nodeSelector": labels,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "agent", "image": install.OPERATOR_IMAGE}],
                },
            },
        },
    }


async def _pods(admin: Client, name: str, count: int) -> list[Json]:
    """The DaemonSet's pods, as soon as each node has one."""
    try:
        async with asyncio.timeout(120):
            while True:
                found = await admin.get(core_path(install.NAMESPACE, "pods"), labelSelector=f"{LABEL}={name}")
                pods = [pod for pod in found["items"] if pod["spec"].get("nodeName")]
                if len(pods) == count:
                    return pods
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise TimeoutError(f"{len(pods)} of {count} nodes have their pod") from None


async def _token(admin: Client, pod: Json) -> str:
    bound = {
        "kind": "Pod",
        "apiVersion": "v1",
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    path = core_path(install.NAMESPACE, "serviceaccounts", f"{install.RELEASE}-agent", "token")
    spec = {"boundObjectRef": bound, "expirationSeconds": 3600}
    answer = await admin.create(
        path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    )
    token: str = answer["status"]["token"]
    return token


async def _remove(admin: Client, name: str, nodes: Sequence[str]) -> None:
    """Nothing is left: nobody would end the pods of a node without a machine, so they go at once."""

    async def gone(path: str, grace: int | None = None) -> None:
        try:
            await admin.delete(path, grace=grace)
        except ApiError as error:
            if error.code != 404:
                raise

    await gone(f"/apis/apps/v1/namespaces/{install.NAMESPACE}/daemonsets/{name}")
    # Without its nodes no pod is made anew by a controller that has not yet heard of the deletion.
    await _each([gone(node_path(node)) for node in nodes])
    found = await admin.get(core_path(install.NAMESPACE, "pods"), labelSelector=f"{LABEL}={name}")
    pods = [core_path(install.NAMESPACE, "pods", pod["metadata"]["name"]) for pod in found["items"]]
    await _each([gone(pod, grace=0) for pod in pods])
