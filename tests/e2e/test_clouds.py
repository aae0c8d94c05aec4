"""The clouds' DaemonSets, each on a real node, each asking a server that speaks its cloud's wire format.

The servers run on this machine, at the address at which the nodes reach it; AWS's is AWS's own mock.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final

import pytest

from tests.kit import aws_mock, install, layout, network
from tests.kit.kube import get, kubectl
from tests.kit.process import free_ports
from tests.kit.shell import wait_until
from tests.unit.node import metadata
from tests.unit.node.google import QUIET, Server
from tests.unit.node.metadata import Service, ok

Json = dict[str, Any]

# The chart is another one as long as these last.
pytestmark = pytest.mark.spot_nodes

NODE: Final = layout.WORKERS[2].name
LABELS: Final = {
    "aws": "eks.amazonaws.com/capacityType=SPOT",
    "gcp": "cloud.google.com/gke-spot=true",
    "azure": "kubernetes.azure.com/scalesetpriority=spot",
    "alibaba": "node.alibabacloud.com/spot-strategy=SpotAsPriceGo",
    "tencent": "cloud.tencent.com/node-instance-id=ins-1",
}
"""What each cloud's nodes bear; Tencent's, like all nodes here, are called spot by our own label."""

TAINT: Final = {"key": "spot.training/reclaim", "value": "reclaim", "effect": "NoSchedule"}
Step = Callable[[], Awaitable[None]]


@dataclass
class Cloud:
    """What the cloud says of the node: that it goes, or nothing any more."""

    announce: Step
    withdraw: Step


@pytest.fixture(scope="module")
def places(installed: None) -> Iterator[dict[str, tuple[str, int]]]:
    """The chart as for machines of these clouds, and where each agent asks."""
    host = network.host_address(NODE)
    found = {provider: (host, free_ports(1, host)[0]) for provider in LABELS}
    settings = {"agent.providers.eci.enabled": "false"}
    for provider, (_, port) in found.items():
        settings |= {
            f"agent.providers.{provider}.enabled": "true",
            f"agent.providers.{provider}.endpoint": f"http://{host}:{port}",
        }
    image = install.operator_image()
    install.chart(image, **settings)
    yield found
    install.chart(image)


@pytest.fixture
def labelled() -> Iterator[Callable[[str], None]]:
    """Makes the node one of a provider's, for the length of the test."""
    given: list[str] = []

    def label(provider: str) -> None:
        given.append(LABELS[provider])
        kubectl("label", "node", NODE, LABELS[provider])

    yield label
    for each in given:
        kubectl("label", "node", NODE, each.split("=")[0] + "-")


def soon(zone: tzinfo = UTC) -> datetime:
    return datetime.now(zone).replace(microsecond=0) + timedelta(seconds=100)


def azure_event() -> str:
    event = {
        "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["vm-1"],
        "EventStatus": "Scheduled",
        "NotBefore": soon().strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }
    return json.dumps({"DocumentIncarnation": 2, "Events": [event]})


AZURE: Final = "GET /metadata/scheduledevents?api-version=2020-07-01"
AZURE_NAME: Final = "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text"
NO_EVENTS: Final = '{"DocumentIncarnation":1,"Events":[]}'
ROUTES: Final[dict[str, tuple[dict[str, str], str, Callable[[], str]]]] = {
    "azure": ({AZURE: NO_EVENTS, AZURE_NAME: "vm-1"}, AZURE, azure_event),
    "alibaba": (
        {"PUT /latest/api/token": "AAA=="},
        "GET /latest/meta-data/instance/spot/termination-time",
        lambda: f"{soon():%Y-%m-%dT%H:%M:%SZ}",
    ),
    "tencent": (
        {},
        "GET /latest/meta-data/spot/termination-time",
        lambda: f"{soon(timezone(timedelta(hours=8))):%Y-%m-%d %H:%M:%S}",
    ),
}
"""What is answered while nothing is announced (else 404), and which request is answered how when something is."""


@asynccontextmanager
async def cloud(provider: str, host: str, port: int) -> AsyncIterator[Cloud]:
    """The metadata service of this cloud, with nothing announced."""
    if provider == "aws":
        with ExitStack() as mock:

            async def restart(*words: str) -> None:
                mock.close()
                options = ("spot", "--rebalance-delay-sec", "3600", *words)
                await asyncio.to_thread(
                    lambda: mock.enter_context(aws_mock.running(*options, host=host, port=port))
                )

            await restart("--mock-delay-sec", "3600")
            yield Cloud(restart, lambda: restart("--mock-delay-sec", "3600"))
    elif provider == "gcp":
        server = Server()
        async with metadata.service(serving=server, host=host, port=port):
            yield Cloud(
                lambda: server.change("preempted", "TRUE"),
                lambda: server.change("preempted", QUIET["preempted"]),
            )
    else:
        quiet, line, says = ROUTES[provider]
        answers = {each: ok(body) for each, body in quiet.items()}
        served = Service(dict(answers))

        async def announce() -> None:
            served.routes[line] = ok(says())

        async def withdraw() -> None:
            served.routes = dict(answers)

        async with metadata.service(serving=served, host=host, port=port):
            yield Cloud(announce, withdraw)


def node() -> Json:
    return get(f"node/{NODE}")[0]


def agents(provider: str) -> list[Json]:
    return get("pods", "-n", install.NAMESPACE, "-l", f"spot.training/provider={provider}")


def is_ready(pod: Json) -> bool:
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", [])
    )


async def until(what: str, condition: Callable[[], bool], provider: str) -> None:
    """Wait, while the servers of this process go on answering."""

    def seen() -> str:
        logs = [
            kubectl("-n", install.NAMESPACE, "logs", pod["metadata"]["name"], "--tail=20")
            for pod in agents(provider)
        ]
        return "\n".join([kubectl("get", "pods", "-A", "-o", "wide"), json.dumps(node()["spec"]), *logs])

    await asyncio.to_thread(wait_until, what, condition, timeout=60, seen=seen)


@pytest.mark.parametrize("provider", LABELS)
async def test_a_clouds_agent_marks_and_cordons_its_node_and_takes_it_back(
    provider: str, places: dict[str, tuple[str, int]], labelled: Callable[[str], None]
) -> None:
    async with cloud(provider, *places[provider]) as metadata_service:
        await asyncio.to_thread(labelled, provider)
        # Ready: the source has answered, in its own words, that nothing is announced.
        await until(
            "a ready agent",
            lambda: [pod["spec"]["nodeName"] for pod in agents(provider) if is_ready(pod)] == [NODE],
            provider,
        )
        assert not node()["spec"].get("unschedulable"), node()

        await metadata_service.announce()
        await until("the marks", lambda: TAINT in node()["spec"].get("taints", []), provider)
        marked = node()
        assert marked["spec"]["unschedulable"] is True
        annotations = marked["metadata"]["annotations"]
        assert annotations["spot.training/notice-source"] == provider
        assert annotations["spot.training/notice-id"].startswith(f"{provider}-")

        await metadata_service.withdraw()
        await until(
            "a node as it was",
            lambda: TAINT not in node()["spec"].get("taints", []) and not node()["spec"].get("unschedulable"),
            provider,
        )
