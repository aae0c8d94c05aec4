"""The operator process: kopf brings the events, the caches take them in, the dispatcher looks at what they touch.

How kopf is used, and why so little of it:

- Only ``index`` and ``event`` handlers. Daemons, timers and delete handlers would put finalizers on objects, and
  create/update handlers would write annotations on them; a stopped operator must not be in anybody's way.
- ``index`` handlers feed the caches while kopf lists; kopf calls no ``event`` handler before everything has been
  listed, so nothing is decided on half a world. They return nothing: the index itself stays empty.
- A deletion that happened while a watch was broken is never told. So the caches are compared with fresh lists
  every few minutes, and a missing pod is looked up before it means anything.
"""

import argparse
import asyncio
import logging
import os
import socket
from collections.abc import Hashable, Mapping
from typing import Any, Final, cast

import kopf
from pydantic import ValidationError

from spot_training.api.names import API_VERSION, GROUP, JOB_PLURAL, POOL_PLURAL, VERSION
from spot_training.cluster.client import ApiError, Client
from spot_training.control.cache import Cache, Store
from spot_training.control.connect import connection
from spot_training.control.dispatch import Dispatcher
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics, serving
from spot_training.control.pools import PoolReporter
from spot_training.control.reconcile import Reconciler
from spot_training.control.world import Job, Node

logger = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
POOL_REPORT_SECONDS: Final = 1.0
"""Pool status is written at most once in that time: a gang's start changes it many times."""

LISTS: Final = {
    "jobs": f"/apis/{API_VERSION}/{JOB_PLURAL}",
    "pools": f"/apis/{API_VERSION}/{POOL_PLURAL}",
    "nodes": "/api/v1/nodes",
    "claims": "/api/v1/persistentvolumeclaims",
    "pods": "/api/v1/pods",
}


class Operator:
    """The caches, and what an event about each kind sets in motion."""

    def __init__(self, client: Client, metrics: Metrics) -> None:
        self.client = client
        self.metrics = metrics
        self.cache = Cache()
        self.listed = asyncio.Event()
        self.announcer = Announcer(client, socket.gethostname())
        self.reconciler = Reconciler(
            client,
            self.cache,
            self.announcer,
            self._job_changed,
            metrics,
            look=lambda key: self.jobs.add(key),
        )
        self.placer = self.reconciler.placer
        self.jobs = Dispatcher(self._reconcile)
        self.pools = Dispatcher(PoolReporter(client, self.cache, self.reconciler.now).report, workers=2)
        metrics.follow(
            lambda: (job.status.phase for job in self.cache.jobs.items.values()), lambda: len(self.jobs)
        )

    def take(self, kind: str, type_: str | None, raw: Mapping[str, Any]) -> None:
        """Take in one event of a watch and queue what it touches."""
        try:
            match kind:
                case "jobs":
                    self._take_job(type_, raw)
                case "pods":
                    self._take_pod(type_, raw)
                case "nodes":
                    self._take_node(type_, raw)
                case "pools":
                    self._take_pool(type_, raw)
                case "claims":
                    self._take_claim(type_, raw)
        except ValidationError as error:
            logger.error(
                "%s %s does not fit this operator's version: %s", kind, raw["metadata"]["name"], error
            )

    async def _reconcile(self, key: Hashable) -> float | None:
        try:
            with self.metrics.reconcile_seconds.time():
                return await self.reconciler.reconcile(key)
        finally:
            self.placer.seen(cast(tuple[str, str], key))

    def start(self) -> None:
        """Everything is listed: look at every job and pool once."""
        self.placer.expect(self.cache.waiting())
        for key in self.cache.jobs.items:
            self.jobs.add(key)
        for name in self.cache.pools.items:
            self.pools.add(name)

    async def resync(self) -> None:
        """Compare the caches with fresh lists, again and again: no watch tells of what went while it was broken."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                await self._prune()
            except (ApiError, OSError, TimeoutError) as error:
                logger.warning("resync failed, the next one is in %d s: %s", RESYNC_SECONDS, error)

    async def _prune(self) -> None:
        stores: dict[str, Store[Any]] = {
            "jobs": self.cache.jobs,
            "pools": self.cache.pools,
            "nodes": self.cache.nodes,
            "claims": self.cache.claims,
            "pods": self.cache.pods,
        }
        for kind, path in LISTS.items():
            store = stores[kind]
            # Only what was there before the list was made can be a ghost.
            before = dict(store.items)
            listed = await self.client.get(path)
            for raw in listed["items"]:
                self.take(kind, "MODIFIED", raw)
            there = {store.key(raw) for raw in listed["items"]}
            for key, known in before.items():
                if key not in there and store.items.get(key) is known:
                    logger.warning("%s %s is gone, and no watch said so", kind, key)
                    self._forget(kind, key, known)

    def _forget(self, kind: str, key: Any, known: Any) -> None:
        match kind:
            case "pods":
                self.cache.bury(known)
                if known.job_uid:
                    self.jobs.add((known.namespace, known.job))
            case "jobs":
                self.cache.jobs.drop(key)
                self.cache.forget_job(known.uid)
                self._job_changed(known, None)
            case "nodes":
                pools = self.cache.supply.pools_of(key)
                self.cache.nodes.drop(key)
                self._node_changed(known, None, pools)
            case "pools":
                self.cache.pools.drop(key)
            case "claims":
                self.cache.claims.drop(key)
                self._wake_claim(key)
        self.placer.wake()

    def _take_job(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        key = raw["metadata"]["namespace"], raw["metadata"]["name"]
        if type_ == "DELETED":
            gone = self.cache.jobs.drop(key, raw["metadata"]["uid"])
            if gone is not None:
                self.cache.forget_job(gone.uid)
                self._job_changed(gone, None)
            return
        _, before, after = self.cache.jobs.put(raw)
        if after is not None and after != before:
            self.jobs.add(key)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        """A job opened or ended an attempt: capacity and claims may be free for others.

        Between two attempts a job holds its claim, so its own end counts, too.
        """
        ended_attempt = before is not None and before.open_attempt and not (after and after.open_attempt)
        ended_job = before is not None and not before.finished and (after is None or after.finished)
        if ended_attempt:
            self.placer.wake()
        if ended_job and before is not None:
            self._wake_claim((before.namespace, before.claim))
        if after is None and before is not None:
            self.placer.forget(before.key)
        for job in (before, after):
            if job is not None and job.status.current is not None:
                self.pools.add_after(job.status.current.pool, POOL_REPORT_SECONDS)

    def _take_pod(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        watched = self.cache.put_agent(raw, removed=type_ == "DELETED")
        if watched is not None:
            for key in self.cache.jobs_on(watched):
                self.jobs.add(key)
        if type_ == "DELETED":
            before, after = None, self.cache.remove_pod(raw)
        else:
            before, after = self.cache.put_pod(raw)
        if after is None or after == before:
            return
        if after.job_uid:
            self.jobs.add((after.namespace, after.job))
        done = after.ended or after.removed
        if after.claim and done:
            self._wake_claim((after.namespace, after.claim))
        pools = self.cache.supply.pools_of(after.node)
        if pools and (done or before is None or before.node != after.node):
            self.placer.wake()
            for name in pools:
                self.pools.add_after(name, POOL_REPORT_SECONDS)

    def _take_node(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        name = raw["metadata"]["name"]
        if type_ == "DELETED":
            pools = self.cache.supply.pools_of(name)
            gone = self.cache.nodes.drop(name, raw["metadata"]["uid"])
            if gone is not None:
                self._node_changed(gone, None, pools)
            return
        pools = self.cache.supply.pools_of(name)
        _, before, after = self.cache.nodes.put(raw)
        if after is not None and after != before:
            self._node_changed(before, after, pools)

    def _node_changed(self, before: Node | None, after: Node | None, pools_before: tuple[str, ...]) -> None:
        name = after.name if after else before.name if before else ""
        for pool in {*pools_before, *self.cache.supply.pools_of(name)}:
            self.pools.add_after(pool, POOL_REPORT_SECONDS)
        for key in self.cache.jobs_on(name):
            self.jobs.add(key)
        self.placer.wake()

    def _take_pool(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        name = raw["metadata"]["name"]
        if type_ == "DELETED":
            self.cache.pools.drop(name, raw["metadata"]["uid"])
            self.placer.wake()
            return
        _, before, after = self.cache.pools.put(raw)
        if after is not None and after != before:
            if before is None or before.spec != after.spec:
                self.placer.wake()
            self.pools.add_after(name, POOL_REPORT_SECONDS)

    def _take_claim(self, type_: str | None, raw: Mapping[str, Any]) -> None:
        key = raw["metadata"]["namespace"], raw["metadata"]["name"]
        if type_ == "DELETED":
            changed = self.cache.claims.drop(key, raw["metadata"]["uid"]) is not None
        else:
            _, before, after = self.cache.claims.put(raw)
            changed = after is not None and after != before
        if changed:
            self._wake_claim(key)

    def _wake_claim(self, claim: tuple[str, str]) -> None:
        """Look at the jobs that name the claim: whoever had it may be done with it."""
        for key in self.cache.with_claim(claim):
            self.jobs.add(key)


def registry(operator: Operator) -> kopf.OperatorRegistry:
    """Kopf's handlers: an index handler that feeds the caches, and an event handler that does the same later."""
    made = kopf.OperatorRegistry()
    resources: dict[str, tuple[Any, ...]] = {
        "jobs": (GROUP, VERSION, JOB_PLURAL),
        "pools": (GROUP, VERSION, POOL_PLURAL),
        "nodes": ("", "v1", "nodes"),
        "claims": ("", "v1", "persistentvolumeclaims"),
        "pods": ("", "v1", "pods"),
    }
    kopf.on.login(id="pod", registry=made)(kopf.login_with_service_account)
    kopf.on.login(id="by-hand", registry=made)(kopf.login_with_kubeconfig)
    for kind, resource in resources.items():
        _register(made, operator, kind, resource)
    return made


def _register(made: kopf.OperatorRegistry, operator: Operator, kind: str, resource: tuple[Any, ...]) -> None:
    async def feed(body: Mapping[str, Any], **_: Any) -> None:
        operator.take(kind, None, body)

    async def event(event: Mapping[str, Any], **_: Any) -> None:
        # kopf calls this only once all kinds are listed, and there is always a node.
        operator.listed.set()
        operator.take(kind, event["type"], event["object"])

    kopf.index(*resource, id=f"feed-{kind}", registry=made)(feed)
    kopf.on.event(*resource, id=f"event-{kind}", registry=made)(event)


def settings() -> kopf.OperatorSettings:
    """Kopf's settings, for an operator that leaves no trace on the objects it watches."""
    made = kopf.OperatorSettings()
    made.scanning.disabled = True
    made.peering.standalone = True
    made.posting.enabled = False
    made.persistence.finalizer = f"{GROUP}/unused"
    made.watching.server_timeout = 290
    made.watching.reconnect_backoff = 0.5
    made.networking.error_backoffs = (0.5, 1, 2, 3, 5, 8)
    made.process.ultimate_exiting_timeout = 10
    return made


async def run(liveness: str | None, metrics_port: int) -> None:
    """Run until told to stop."""
    metrics = Metrics()
    async with (
        Client(connection(), user_agent="spot-training-operator", observe=metrics.note_request) as client,
        serving(metrics.registry, metrics_port),
    ):
        for kind in ("jobs", "pools"):
            try:
                await client.get(LISTS[kind], limit="1")
            except ApiError as error:
                if error.code == 404:
                    raise SystemExit(
                        f"the cluster does not know {LISTS[kind]}: install the CRDs (kubectl apply -f crds/)"
                    ) from error
                raise
        operator = Operator(client, metrics)
        handlers = registry(operator)

        async def on_listed() -> None:
            await operator.listed.wait()
            operator.start()
            await asyncio.gather(
                operator.jobs.run(), operator.pools.run(), operator.announcer.run(), operator.resync()
            )

        work = asyncio.create_task(on_listed())
        stop = asyncio.Event()
        work.add_done_callback(lambda _: stop.set())
        await kopf.operator(
            registry=handlers,
            settings=settings(),
            clusterwide=True,
            standalone=True,
            # kopf would else look up the name of the user, who has none in a container.
            identity=cast(Any, socket.gethostname()),
            liveness_endpoint=liveness,
            stop_flag=stop,
        )
        if work.done():
            work.result()
        work.cancel()


def _port(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")


def main(argv: list[str]) -> int:
    """``spot-training operator``: reconcile SpotTrainingJobs until told to stop."""
    parser = argparse.ArgumentParser(prog="spot-training operator", description=main.__doc__)
    parser.add_argument(
        "--liveness",
        default=os.environ.get("SPOT_LIVENESS", "http://0.0.0.0:8080/healthz"),
        help="address on which the liveness probe is answered",
    )
    parser.add_argument(
        "--metrics-port",
        type=_port,
        default=os.environ.get("SPOT_METRICS_PORT", "8081"),
        help="port of /metrics, on all addresses (SPOT_METRICS_PORT)",
    )
    parser.add_argument("--log-level", default=os.environ.get("SPOT_LOG_LEVEL", "info"))
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("kopf", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    asyncio.run(run(options.liveness, options.metrics_port))
    return 0
