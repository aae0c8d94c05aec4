"""The operator process: watches, stands by or leads, answers the probes, and ends in order."""

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from spot_training.cluster.client import ApiError, Client
from spot_training.control.connect import connection
from spot_training.control.election import Election, LeaderClient
from spot_training.control.follow import LISTS
from spot_training.control.handlers import watch
from spot_training.control.headroom import Placeholders
from spot_training.control.metrics import Metrics, serving
from spot_training.control.operator import Operator
from spot_training.control.prices import PriceFile

logger = logging.getLogger(__name__)

COLLECT: Final = (5000, 10, 10)
"""How seldom the garbage collector runs (``gc.set_threshold``). At Python's own 700 objects it takes for old what has
just been parsed, and goes over everything again and again.
"""

_LEASE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


async def run(
    liveness: str | None,
    metrics_port: int,
    lease: str,
    price_file: str = "",
    cost_labels: Sequence[str] = (),
    headroom: tuple[str, str, Sequence[str]] = ("", "", ()),
) -> None:
    """Run until told to stop. ``lease``, ``price_file``: namespace and name of the Lease, and of a ConfigMap where
    there is one, with a slash between; ``headroom``: image, PriorityClass and pull secrets of the pods that keep nodes
    warm, in the Lease's namespace.
    """
    metrics, server = Metrics(cost_labels), connection()
    namespace, name = lease.split("/")
    # The container's first process is 1 each time: started again in its pod it need not wait for itself.
    me = f"{socket.gethostname()}_{os.getpid()}"
    election = Election(Client(server, user_agent="spot-training-operator-election"), namespace, name, me)
    async with (
        LeaderClient(
            server,
            lambda: election.leading,
            user_agent="spot-training-operator",
            observe=metrics.note_request,
        ) as client,
        serving(metrics.registry, metrics_port),
    ):
        await _check_crds(client)
        image, priority_class, secrets = headroom
        placeholders = Placeholders(namespace, image, priority_class, tuple(secrets)) if image else None
        operator = Operator(client, metrics, lambda: election.leading, placeholders)
        operator.rest()
        prices = _prices(operator, price_file) if price_file else None

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(operator.follower.run())
                await operator.follower.listed.wait()
                leave_alone()
                if prices is not None:
                    await prices.first()
                    group.create_task(prices.run(operator.prices_changed))
                group.create_task(election.run_apart(operator.lead))

        await _beside(operator, work, liveness)


def leave_alone() -> None:
    """Have the garbage collector pass over all that is there now: it stays, or goes without the collector.

    That holds up all threads, the one that renews the Lease too: with 5,000 nodes on a busy machine going over
    everything took up to 1.7 s.
    """
    gc.collect()
    gc.freeze()


def _prices(operator: Operator, price_file: str) -> PriceFile:
    namespace, name = price_file.split("/")
    return PriceFile(
        operator.client,
        operator.cache,
        (namespace, name),
        operator.announcer,
        operator.metrics,
        operator.reconciler.now,
    )


async def _beside(operator: Operator, work: Callable[[], Awaitable[None]], liveness: str | None) -> None:
    """Watch and work, until either ends or a signal comes; the work ends first, as it needs what is watched."""
    stop = asyncio.Event()
    working = asyncio.ensure_future(work())
    working.add_done_callback(lambda _: stop.set())

    async def heed_signals() -> None:
        # kopf has set its own handlers by then. Its end takes seconds, in which it would let the work go on.
        await operator.watching.wait()
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, working.cancel)

    heeding = asyncio.create_task(heed_signals())
    try:
        await watch(operator, liveness, stop, working.cancel)
    finally:
        heeding.cancel()
        working.cancel()
        await asyncio.wait([working, heeding])
    if not working.cancelled():
        working.result()


async def _check_crds(client: Client) -> None:
    for kind in ("jobs", "pools"):
        try:
            await client.get(LISTS[kind], limit="1")
        except ApiError as error:
            if error.code == 404:
                raise SystemExit(
                    f"the cluster does not know {LISTS[kind]}: install the CRDs (kubectl apply -f crds/)"
                ) from error
            raise


def _port(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")


def _price_file(text: str) -> str:
    if not text or _LEASE.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} names no ConfigMap: give its namespace and name, as in spot/prices"
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _lease(text: str) -> str:
    if _LEASE.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} names no Lease: give its namespace and name, as in spot/leader"
    )


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
    parser.add_argument(
        "--lease",
        type=_lease,
        default=os.environ.get("SPOT_LEASE", "spot-training/spot-training-operator"),
        help="NAMESPACE/NAME of the Lease whose holder leads; others stand by (SPOT_LEASE)",
    )
    parser.add_argument(
        "--price-file",
        type=_price_file,
        default=os.environ.get("SPOT_PRICE_FILE", ""),
        help="NAMESPACE/NAME of a ConfigMap with prices of node hours by SpotPool (SPOT_PRICE_FILE)",
    )
    parser.add_argument(
        "--cost-labels",
        type=_words,
        default=os.environ.get("SPOT_COST_LABELS", ""),
        help="labels of jobs by which metrics tell costs apart, with commas between (SPOT_COST_LABELS)",
    )
    parser.add_argument(
        "--headroom-image",
        default=os.environ.get("SPOT_HEADROOM_IMAGE", ""),
        help="image of the pods that keep nodes of SpotPools warm; empty: none is made (SPOT_HEADROOM_IMAGE)",
    )
    parser.add_argument(
        "--headroom-priority-class",
        default=os.environ.get("SPOT_HEADROOM_PRIORITY_CLASS", ""),
        help="their PriorityClass, of a negative value (SPOT_HEADROOM_PRIORITY_CLASS)",
    )
    parser.add_argument(
        "--headroom-pull-secrets",
        type=_words,
        default=os.environ.get("SPOT_HEADROOM_PULL_SECRETS", ""),
        help="Secrets to pull that image with, with commas between (SPOT_HEADROOM_PULL_SECRETS)",
    )
    parser.add_argument("--log-level", default=os.environ.get("SPOT_LOG_LEVEL", "info"))
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("kopf", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    gc.set_threshold(*COLLECT)
    headroom = options.headroom_image, options.headroom_priority_class, options.headroom_pull_secrets
    asyncio.run(
        run(
            options.liveness,
            options.metrics_port,
            options.lease,
            options.price_file,
            options.cost_labels,
            headroom,
        )
    )
    return 0
