"""Thousands of objects on the test cluster, and how they are made and counted with as little load as can be."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import aiohttp

from spot_training.cluster.client import ApiError, Client, Connection
from tests.kit import kwok

Json = dict[str, Any]

POOL: Final = "bench"
LABEL: Final = "spot.training/bench"
IMAGE: Final = "registry.invalid/bench:1"
"""Simulated nodes pull nothing."""


class Bulk:
    """Requests side by side, as many as ``width``, through one connection each; the quickest bare client there is."""

    def __init__(self, connection: Connection, width: int) -> None:
        self._connection = connection
        self._slots = asyncio.Semaphore(width)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=width), timeout=aiohttp.ClientTimeout(total=120)
        )

    async def __aenter__(self) -> "Bulk":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, body: Json | None = None, *, kind: str = "application/json"
    ) -> Json:
        """One request. Raises RuntimeError with the API server's words for a refusal."""
        async with self._slots:
            headers = {"Content-Type": kind, "Accept": "application/json"}
            if self._connection.token:
                headers["Authorization"] = f"Bearer {self._connection.token}"
            data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
            async with self._session.request(
                method,
                self._connection.server + path,
                data=data,
                headers=headers,
                ssl=self._connection.tls or True,
            ) as response:
                text = await response.read()
                if response.status >= 400 and not (method == "DELETE" and response.status == 404):
                    raise RuntimeError(f"{method} {path}: {response.status} {text[:300].decode()}")
                answer: Json = json.loads(text)
                return answer

    async def all(self, requests: Iterable[Awaitable[Any]]) -> list[Any]:
        """Await all of them together."""
        return list(await asyncio.gather(*requests))

    async def patch(self, path: str, body: Json) -> Json:
        """A JSON merge patch."""
        return await self.send("PATCH", path, body, kind="application/merge-patch+json")


async def count(client: Client, path: str) -> int:
    """How many objects there are, without reading them: a page of one, and what the API server says remains."""
    page = await client.get(path, limit="1")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)


async def wait_for(
    what: str, reached: Callable[[], Awaitable[bool]], within: float, every: float = 0.1
) -> None:
    """Ask ``reached`` every so often. Raises TimeoutError that names ``what`` after ``within`` seconds."""
    began = time.monotonic()
    while not await reached():
        if time.monotonic() - began > within:
            raise TimeoutError(f"{what}: not within {within:.0f} s")
        await asyncio.sleep(every)


async def counted(number: Callable[[], Awaitable[int]], all_of_them: int, within: float) -> int:
    """Ask ``number`` until it is ``all_of_them`` or the time is up, and return it.

    It is asked more often the sooner that is, by the pace so far: counting costs the API server time.
    """
    began = time.monotonic()
    while (there := await number()) < all_of_them and (passed := time.monotonic() - began) < within:
        left = passed * (all_of_them - there) / there if there else 1.0
        await asyncio.sleep(min(max(left / 3, 0.1), 5.0))
    return there


async def wait_for_all(
    what: str, number: Callable[[], Awaitable[int]], all_of_them: int, within: float
) -> None:
    """Ask ``number`` like :func:`counted`. Raises TimeoutError that names ``what``."""
    there = await counted(number, all_of_them, within)
    if there < all_of_them:
        raise TimeoutError(f"{what}: {there} of {all_of_them} within {within:.0f} s")


async def make_namespace(bulk: Bulk, name: str) -> None:
    """A fresh namespace."""
    await bulk.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})


async def make_nodes(bulk: Bulk, client: Client, number: int) -> None:
    """Simulated spot nodes, all of them Ready."""
    made = [kwok.node(f"bench-{index:05d}", {LABEL: "node"}) for index in range(number)]
    await bulk.all(bulk.send("POST", "/api/v1/nodes", each) for each in made)

    async def ready() -> bool:
        nodes = await client.get("/api/v1/nodes", labelSelector=f"{LABEL}=node")
        return sum(1 for each in nodes["items"] if is_ready(each)) == number

    await wait_for(f"{number} simulated nodes are Ready", ready, within=300, every=2)


def is_ready(node: Json) -> bool:
    """Whether a node says that it is Ready."""
    conditions = node.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def make_claims(bulk: Bulk, namespace: str, names: Iterable[str]) -> None:
    """Claims bound to volumes of their own, so that pods which mount them are scheduled.

    They are left as the controller manager would leave them: it binds five in a second.
    """
    await bulk.all(_make_claim(bulk, namespace, each) for each in names)


async def _make_claim(bulk: Bulk, namespace: str, name: str) -> None:
    claims, volumes = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", "/api/v1/persistentvolumes"
    made = await bulk.send("POST", claims, _claim(namespace, name))
    volume = _volume(namespace, name, made["metadata"]["uid"])
    await bulk.send("POST", volumes, volume)
    await bulk.patch(f"{volumes}/{namespace}-{name}/status", {"status": {"phase": "Bound"}})
    bound = {"pv.kubernetes.io/bind-completed": "yes"}
    await bulk.patch(f"{claims}/{name}", {"metadata": {"annotations": bound}})
    status = {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Mi"}}
    await bulk.patch(f"{claims}/{name}/status", {"status": status})


def _volume(namespace: str, name: str, uid: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}", "labels": {LABEL: namespace}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Mi"},
            "storageClassName": "bench",
            "hostPath": {"path": "/nonexistent"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }


def _claim(namespace: str, name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "bench",
            "volumeName": f"{namespace}-{name}",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


def pod_spec(gpus: int = 1) -> Json:
    """A pod of the crowd; it tolerates the simulated nodes' taint."""
    return {
        "containers": [{"name": "main", "image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": gpus}}}],
        "tolerations": [{"key": kwok.TAINT, "operator": "Exists"}],
    }


def pool() -> Json:
    """The pool of the simulated nodes."""
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotPool",
        "metadata": {"name": POOL},
        "spec": {"nodeSelector": {LABEL: "node"}, "noticeSeconds": 60},
    }


def job(namespace: str, name: str, replicas: int) -> Json:
    """A SpotTrainingJob that waits suspended."""
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotTrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "pools": [POOL],
            "suspend": True,
            "template": {"spec": pod_spec()},
            "checkpoint": {"mountPath": "/mnt/checkpoint", "claimName": name, "writer": "Library"},
        },
    }


def job_names(number: int) -> list[str]:
    """Names for so many jobs."""
    return [f"job-{index:05d}" for index in range(number)]


def batch_job(namespace: str, name: str, pods: int) -> Json:
    """A batch/v1 Job of the same shape that waits suspended."""
    spec = pod_spec() | {"restartPolicy": "Never", "nodeSelector": {LABEL: "node"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "completionMode": "Indexed",
            "suspend": True,
            "template": {"spec": spec},
        },
    }


async def empty(bulk: Bulk, client: Client, namespace: str) -> None:
    """Take jobs, services and pods out of a namespace, the pods without grace; claims stay.

    Each by itself: the API server deletes a collection one after the other, and breaks that off after a minute.
    """
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
    for path in (
        f"/apis/spot.training/v1alpha1/namespaces/{namespace}/spottrainingjobs",
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        f"/api/v1/namespaces/{namespace}/services",
        f"/api/v1/namespaces/{namespace}/pods",
    ):
        there = (await client.get(path))["items"]
        names = [each["metadata"]["name"] for each in there]
        body = {**options, "propagationPolicy": "Background"}
        await bulk.all(bulk.send("DELETE", f"{path}/{name}", body) for name in names)

    async def gone() -> bool:
        return await count(client, f"/api/v1/namespaces/{namespace}/pods") == 0

    await wait_for(f"the pods of {namespace} are gone", gone, within=600, every=1)


async def clear(bulk: Bulk, client: Client, namespaces: Iterable[str]) -> None:
    """Take away the namespaces with all in them, and the volumes made for them."""
    for namespace in namespaces:
        await empty(bulk, client, namespace)
        # The controller manager takes their finalizers off five in a second.
        for path, query in (
            (f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", {}),
            ("/api/v1/persistentvolumes", {"labelSelector": f"{LABEL}={namespace}"}),
        ):
            left = (await client.get(path, **query))["items"]
            await bulk.all(_unprotected(bulk, f"{path}/{each['metadata']['name']}") for each in left)
        await bulk.send("DELETE", f"/api/v1/namespaces/{namespace}")

    async def gone() -> bool:
        for namespace in namespaces:
            try:
                await client.get(f"/api/v1/namespaces/{namespace}")
            except ApiError as error:
                if error.code == 404:
                    continue
                raise
            return False
        return True

    await wait_for("the namespaces are gone", gone, within=300, every=1)


async def _unprotected(bulk: Bulk, path: str) -> None:
    await bulk.patch(path, {"metadata": {"finalizers": None}})
    await bulk.send("DELETE", path)
