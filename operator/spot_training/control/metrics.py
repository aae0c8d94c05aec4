"""What the operator counts, for Prometheus, and the port it is read from.

Labels are bounded: pools, reasons from closed tables, phases, HTTP methods and codes; never a job or a node. Only
what jobs cost has their namespaces and chosen labels as well (``charges.py``), of which so many are kept apart. The
server is aiohttp's, which is here anyway, on the loop that does everything else: prometheus_client's
own takes a thread, in which it would read the caches while the loop changes them. A scrape takes milliseconds, as
nothing in it grows with the cluster but the count of jobs by phase, and the pools.
"""

import asyncio
import socket
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, get_args

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spot_training.api.status import Phase, SpotTrainingJobStatus
from spot_training.control.charges import Charges
from spot_training.control.conditions import find
from spot_training.control.observations import (
    ClaimFilled,
    Counted,
    FellBack,
    MoneyRanOut,
    Opened,
    Recovered,
    WentBack,
    charges,
    observations,
)
from spot_training.control.world import Job, Pool

_RECOVERY_BUCKETS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_RECONCILE_BUCKETS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class Metrics:
    """The operator's metrics in a registry of their own."""

    def __init__(self, cost_labels: Sequence[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self._charges = Charges(registry, cost_labels)
        ProcessCollector(registry=registry)
        self._disruptions = Counter(
            "spot_operator_disruptions",
            "Attempts ended by their machines: reclaimed, evicted, lost",
            ["reason", "pool"],
            registry=registry,
        )
        self._failures = Counter(
            "spot_operator_failures", "Attempts ended by the program", ["reason", "pool"], registry=registry
        )
        self._unstarted = Counter(
            "spot_operator_unstarted",
            "Attempts that did not come to run: not whole in time, refused, or not to be started",
            ["reason", "pool"],
            registry=registry,
        )
        self._attempts = Counter("spot_operator_attempts", "Attempts opened", ["pool"], registry=registry)
        self._recovery = Histogram(
            "spot_operator_recovery_seconds",
            "From the stop of an interrupted attempt to the next one's whole gang running, by the pool of the "
            "interrupted one; without jobs that were suspended meanwhile",
            ["pool"],
            buckets=_RECOVERY_BUCKETS,
            registry=registry,
        )
        self._ran_out = Counter(
            "spot_operator_budget_exhausted",
            "Jobs whose onDemand.maxCost pays for no on-demand machines any more",
            registry=registry,
        )
        self._fell_back = Counter(
            "spot_operator_on_demand_fallbacks",
            "Attempts opened on an on-demand pool because no spot pool had room",
            ["pool"],
            registry=registry,
        )
        self._went_back = Counter(
            "spot_operator_back_to_spot",
            "Attempts on an on-demand pool that were stopped because spot machines pay",
            ["pool"],
            registry=registry,
        )
        self._claims_full = Counter(
            "spot_operator_claims_full", "Attempts that found their checkpoint claim full", registry=registry
        )
        self.price_troubles = Gauge(
            "spot_operator_price_troubles", "Bad entries of the price file", registry=registry
        )
        self.reconcile_seconds = Histogram(
            "spot_operator_reconcile_seconds",
            "One look at one job, requests included",
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self._queue_depth = Gauge("spot_operator_queue_depth", "Jobs to be looked at now", registry=registry)
        self._leader = Gauge(
            "spot_operator_leader", "1: this replica acts; 0: it stands by", registry=registry
        )
        self._tasks = Gauge("spot_operator_tasks", "asyncio's tasks, kopf's among them", registry=registry)
        self._requests = Counter(
            "spot_operator_api_requests",
            "The operator's own requests to the API server (kopf's watches are not among them), by HTTP method "
            "and code; error: no answer",
            ["verb", "code"],
            registry=registry,
        )

    def follow(
        self,
        phases: Callable[[], Iterable[Phase]],
        queue_depth: Callable[[], int],
        leading: Callable[[], bool],
        pools: Callable[[], Iterable[Pool]] = lambda: (),
    ) -> None:
        """Ask these at each scrape: the phase of every job, how many wait to be looked at, whether this one leads, the
        pools.

        Only the leader tells of jobs and pools, so that they can be summed over the replicas.
        """
        self.registry.register(_Jobs(lambda: phases() if leading() else ()))
        self.registry.register(_Pools(lambda: pools() if leading() else ()))
        self._queue_depth.set_function(queue_depth)
        self._leader.set_function(leading)
        self._tasks.set_function(lambda: len(asyncio.all_tasks()))

    def note_request(self, verb: str, code: str) -> None:
        """The API server answered, or did not."""
        self._requests.labels(verb, code).inc()

    def note_write(self, before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> None:
        """A job's status was written."""
        for each in observations(before, after):
            match each:
                case Counted(cls="Disruption", reason=reason, pool=pool):
                    self._disruptions.labels(reason, pool).inc()
                case Counted(cls="Failure", reason=reason, pool=pool):
                    self._failures.labels(reason, pool).inc()
                case Counted(cls="NotStarted", reason=reason, pool=pool):
                    self._unstarted.labels(reason, pool).inc()
                case Opened(pool=pool):
                    self._attempts.labels(pool).inc()
                case Recovered(pool=pool, seconds=seconds):
                    self._recovery.labels(pool).observe(seconds)
                case MoneyRanOut():
                    self._ran_out.inc()
                case ClaimFilled():
                    self._claims_full.inc()
                case FellBack(pool=pool):
                    self._fell_back.labels(pool).inc()
                case WentBack(pool=pool):
                    self._went_back.labels(pool).inc()

    def note_charge(self, job: Job, after: SpotTrainingJobStatus) -> None:
        """A job's status was written over that of ``job``: what it adds to the bill."""
        for each in charges(job.status, after):
            self._charges.add(job, each)


class _Jobs(Collector):
    """Jobs by phase, counted at each scrape: a gauge that is kept beside the cache would drift from it."""

    def __init__(self, phases: Callable[[], Iterable[Phase]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        counted = Tally(self._phases())
        made = GaugeMetricFamily("spot_operator_jobs", "SpotTrainingJobs", labels=["phase"])
        for phase in get_args(Phase):
            made.add_metric([phase], counted[phase])
        yield made


class _Pools(Collector):
    """What stands in the status of the pools. Nodes that a pool keeps warm are in no job's bill."""

    def __init__(self, pools: Callable[[], Iterable[Pool]]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        pools = list(self._pools())
        for name, (words, value) in _OF_POOLS.items():
            made = GaugeMetricFamily(f"spot_operator_{name}", words, labels=["pool"])
            for pool in pools:
                amount = value(pool)
                if amount is not None:
                    made.add_metric([pool.name], amount)
            yield made


def _rate(pool: Pool) -> float | None:
    shown = pool.status.interruptions.rate_per_node_hour
    return float(shown) if shown is not None else None


def _breaker(pool: Pool) -> float | None:
    found = find(pool.status.conditions, "BreakerOpen")
    return float(found.status == "True") if found is not None else None


_OF_POOLS: Final[Mapping[str, tuple[str, Callable[[Pool], float | None]]]] = {
    "pool_nodes": ("Nodes of the pool", lambda pool: pool.status.nodes.total),
    "pool_ready_nodes": ("Those that are Ready", lambda pool: pool.status.nodes.ready),
    "pool_reclaiming_nodes": (
        "Those with a notice that they will be taken",
        lambda pool: pool.status.nodes.reclaiming,
    ),
    "pool_gpus": ("GPUs of the pool's nodes that take pods now", lambda pool: pool.status.gpus.total),
    "pool_free_gpus": (
        "Those that neither a pod uses nor a starting attempt will use",
        lambda pool: pool.status.gpus.free,
    ),
    "pool_interruptions_per_node_hour": ("Decayed rate of interruptions", _rate),
    "pool_breaker_open": ("1: nothing new is placed in the pool; absent: it has no breaker", _breaker),
    "headroom_wanted_nodes": (
        "Nodes that the pool is to keep warm",
        lambda pool: pool.status.headroom.nodes if pool.status.headroom else None,
    ),
    "headroom_warm_nodes": (
        "Nodes that the pool keeps warm; what they cost is in no job's bill",
        lambda pool: pool.status.headroom.warm if pool.status.headroom else None,
    ),
}


@asynccontextmanager
async def serving(registry: CollectorRegistry, port: int) -> AsyncIterator[int]:
    """Serve ``/metrics`` on all addresses; gives the port, 0 takes a free one. Raises ``OSError`` where it is taken."""
    app = web.Application()
    # aiohttp compresses in a thread; a scrape is a few kilobytes.
    app.router.add_get("/metrics", make_aiohttp_handler(registry, disable_compression=True))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listening = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        await web.SockSite(runner, listening).start()
        yield listening.getsockname()[1]
    finally:
        await runner.cleanup()
