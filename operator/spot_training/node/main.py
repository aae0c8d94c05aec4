"""``spot-training agent``: the command line, and the environment that a DaemonSet sets."""

import argparse
import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from spot_training.cluster.client import Client, Connection, in_cluster
from spot_training.node import logs
from spot_training.node.agent import Agent
from spot_training.node.announce import Outlet
from spot_training.node.health import HealthServer
from spot_training.node.message import DEFAULT_BODY, FACTS, parse_body
from spot_training.node.metrics import Metrics
from spot_training.node.policy import Policy, Response
from spot_training.node.post import check_url
from spot_training.node.situation import Settings
from spot_training.node.sources import Source
from spot_training.node.sources.choice import ECI_SOCKET, PROVIDERS, choose

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 5.0
"""A request that takes longer is given up and made again: minutes are all there is."""

TRUE: Final = ("true", "1", "yes")
FALSE: Final = ("false", "0", "no")


def main(argv: Sequence[str]) -> int:
    """Run the agent until it is told to stop; returns the exit code."""
    options = parser(os.environ).parse_args(argv)
    logs.to_stdout(options.log_level)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise SystemExit("KUBERNETES_SERVICE_HOST is not set: the agent runs as a pod of a DaemonSet")
    pod = (options.pod_namespace, options.pod_name) if options.pod_name else None
    policy = Policy(options.on_rebalance, options.on_maintenance)
    settings = Settings(
        options.node_name,
        options.poll_seconds,
        options.drain,
        options.dry_run,
        pod,
        policy,
        options.wait_for_volumes,
        options.cluster_name,
    )
    metrics = Metrics()
    with asyncio.Runner() as runner:
        try:
            source = choose(
                options.provider, options.eci_socket, options.metadata_endpoint, options.azure_approve
            )
        except ValueError as error:
            raise SystemExit(str(error)) from None
        told = outlets(options, metrics)
        runner.run(serve(settings, in_cluster(host, port), source, metrics, told, options.metrics_port))
    return 0


async def serve(
    settings: Settings,
    connection: Connection,
    source: Source,
    metrics: Metrics,
    told: Sequence[Outlet],
    port: int,
) -> None:
    """Run an agent and its HTTP server until SIGTERM or SIGINT."""
    async with Client(connection, "spot-training-agent", REQUEST_SECONDS) as client:
        agent = Agent(settings, client, source, metrics, told)
        async with HealthServer(agent.pulse, metrics.registry, port):
            work = asyncio.create_task(agent.run())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, work.cancel)
            await asyncio.wait([work])
            if not work.cancelled():
                work.result()


def outlets(options: argparse.Namespace, metrics: Metrics) -> list[Outlet]:
    """Who is told outside the cluster; what is not wanted is not imported."""
    told: list[Outlet] = []
    if options.webhook:
        # From a Secret that others may change or take away at any time: no reason to leave the node unwatched.
        try:
            url = check_url(options.webhook_url.strip())
        except ValueError as error:
            log.error("no message will be sent: the webhook's URL, from its Secret, is %s", error)
        else:
            from spot_training.node.webhook import Webhook

            told.append(Webhook(url, options.webhook_body, metrics))
    if options.hook_command:
        from spot_training.node.hook import CommandHook

        told.append(CommandHook(options.hook_command, options.hook_timeout_seconds, metrics))
    if options.hook_url:
        from spot_training.node.hook import UrlHook

        told.append(UrlHook(options.hook_url, options.hook_timeout_seconds, metrics))
    return told


def parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    """The options; each takes its default from the environment variable that its help names."""
    result = argparse.ArgumentParser(
        prog="spot-training agent",
        description="Watches for the reclamation of this node, and drains it in time.",
    )

    def option(
        flag: str, variable: str, default: str | None, text: str, kind: Callable[[str], object] = str
    ) -> None:
        given = env.get(variable) or default
        result.add_argument(
            flag,
            default=given,
            required=given is None,
            type=kind,
            help=f"{text} [{variable}]",
        )

    option("--node-name", "NODE_NAME", None, "the Node this agent runs on")
    option("--provider", "SPOT_PROVIDER", "eci", "whose notices: " + ", ".join(PROVIDERS), _provider)
    option("--eci-socket", "SPOT_ECI_SOCKET", ECI_SOCKET, "the ECI guest agent's Unix socket")
    option(
        "--metadata-endpoint",
        "SPOT_METADATA_ENDPOINT",
        "",
        "another place of the provider's metadata service, such as http://[fd00:ec2::254]; empty: the documented one",
        _endpoint,
    )
    option("--poll-seconds", "SPOT_POLL_SECONDS", "1", "time between two questions to the source", _seconds)
    option("--metrics-port", "SPOT_METRICS_PORT", "9808", "port of /livez, /readyz and /metrics", _port)
    option("--drain", "SPOT_DRAIN", "true", "false: only mark and cordon the node", _boolean)
    warned = "taint (and tell), drain, or ignore"
    option(
        "--on-rebalance", "SPOT_ON_REBALANCE", "taint", f"at a rebalance recommendation: {warned}", _response
    )
    option(
        "--on-maintenance", "SPOT_ON_MAINTENANCE", "taint", f"at a far-off maintenance: {warned}", _response
    )
    option("--dry-run", "SPOT_DRY_RUN", "false", "true: log what would be done, change nothing", _boolean)
    option(
        "--wait-for-volumes",
        "SPOT_WAIT_FOR_VOLUMES",
        "true",
        "false: a node is drained when its pods have left, whatever volumes are attached",
        _boolean,
    )
    option(
        "--azure-approve",
        "SPOT_AZURE_APPROVE",
        "false",
        "true: let Azure's events begin when drained",
        _boolean,
    )
    option("--cluster-name", "SPOT_CLUSTER_NAME", "", "the name of this cluster in messages")
    option("--webhook", "SPOT_WEBHOOK", "false", "true: tell notices and their ends to the webhook", _boolean)
    option("--webhook-url", "SPOT_WEBHOOK_URL", "", "where to: a secret, so better given as the variable")
    body = "what is posted: a JSON object, in whose strings are filled in $" + ", $".join(FACTS)
    option("--webhook-body", "SPOT_WEBHOOK_BODY", DEFAULT_BODY, body, _body)
    option("--hook-command", "SPOT_HOOK_COMMAND", "[]", "run at a notice: a JSON list of words", _command)
    option("--hook-url", "SPOT_HOOK_URL", "", "posted to at a notice", _url)
    option("--hook-timeout-seconds", "SPOT_HOOK_TIMEOUT_SECONDS", "10", "the hooks' time", _hook_seconds)
    option("--pod-name", "POD_NAME", "", "this pod, to replace it when its socket is dead")
    option("--pod-namespace", "POD_NAMESPACE", "default", "the namespace of this pod")
    option("--log-level", "SPOT_LOG_LEVEL", "info", "debug, info, warning or error", _level)
    return result


def _provider(text: str) -> str:
    if text not in PROVIDERS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the known providers: {', '.join(PROVIDERS)}")
    return text


def _endpoint(text: str) -> str:
    try:
        parts = urlsplit(text)
        proper = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        proper = False
    if text and not (proper and text == f"{parts.scheme}://{parts.netloc}"):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form http://host or http://host:port")
    return text


def _response(text: str) -> Response:
    try:
        return Response(text.lower())
    except ValueError:
        known = ", ".join(response.value for response in Response)
        raise argparse.ArgumentTypeError(f"{text!r} is none of {known}") from None


def _seconds(text: str) -> float:
    return _between(0.05, 60, text)


def _hook_seconds(text: str) -> float:
    return _between(1, 300, text)


def _between(least: float, most: float, text: str) -> float:
    seconds = float(text)
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g} seconds")
    return seconds


def _body(text: str) -> object:
    try:
        return parse_body(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _command(text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a JSON list of words such as ["/bin/flush", "--all"]'
        )
    return tuple(words)


def _url(text: str) -> str:
    try:
        return text and check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is {error}") from None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return port


def _boolean(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE


def _level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of debug, info, warning, error")
    return text.lower()
