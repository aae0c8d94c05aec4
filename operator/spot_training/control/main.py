"""The operator process: watches, stands by or leads, answers the probes, and ends in order."""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable

from spot_training.cluster.client import ApiError, Client
from spot_training.control.connect import connection
from spot_training.control.election import Election, LeaderClient
from spot_training.control.handlers import watch
from spot_training.control.metrics import Metrics, serving
from spot_training.control.operator import LISTS, Operator

logger = logging.getLogger(__name__)

_LEASE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


async def run(liveness: str | None, metrics_port: int, lease: str) -> None:
    """Run until told to stop. ``lease``: namespace and name of the Lease, with a slash between."""
    metrics, server = Metrics(), connection()
    namespace, name = lease.split("/")
    # The container's first process is 1 each time: started again in its pod it need not wait for itself.
    me = f"{socket.gethostname()}_{os.getpid()}"
    async with Client(server, user_agent="spot-training-operator-election") as lone:
        election = Election(lone, namespace, name, me)
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
            operator = Operator(client, metrics, lambda: election.leading)
            operator.rest()

            async def work() -> None:
                await operator.listed.wait()
                async with asyncio.TaskGroup() as group:
                    group.create_task(operator.follow())
                    group.create_task(election.run(operator.lead))

            await _beside(operator, work, liveness)


async def _beside(operator: Operator, work: Callable[[], Awaitable[None]], liveness: str | None) -> None:
    """Watch and work, until either ends or a signal comes; the work ends first, as it needs what is watched."""
    stop = asyncio.Event()
    working = asyncio.ensure_future(work())
    working.add_done_callback(lambda _: stop.set())

    async def heed_signals() -> None:
        # kopf has set its own handlers by then. Its end takes seconds, in which it would let the work go on.
        await operator.listed.wait()
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
    parser.add_argument("--log-level", default=os.environ.get("SPOT_LOG_LEVEL", "info"))
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("kopf", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    asyncio.run(run(options.liveness, options.metrics_port, options.lease))
    return 0
