"""The command line and its environment."""

import io
import json
import logging
import subprocess
import sys

import pytest

from spot_training.node.logs import JsonFormatter, fields
from spot_training.node.main import main, parser
from spot_training.node.policy import Response
from spot_training.node.sources.choice import PROVIDERS, choose
from tests.unit.node.metadata import service


def test_everything_can_be_set_by_the_environment() -> None:
    env = {
        "NODE_NAME": "n1",
        "SPOT_PROVIDER": "eci",
        "SPOT_ECI_SOCKET": "/s",
        "SPOT_METADATA_ENDPOINT": "http://[fd00:ec2::254]:8080",
        "SPOT_POLL_SECONDS": "0.5",
        "SPOT_METRICS_PORT": "1234",
        "SPOT_DRAIN": "False",
        "SPOT_DRY_RUN": "TRUE",
        "SPOT_ON_REBALANCE": "Drain",
        "SPOT_ON_MAINTENANCE": "ignore",
        "POD_NAME": "p",
        "POD_NAMESPACE": "ns",
        "SPOT_LOG_LEVEL": "DEBUG",
    }
    options = parser(env).parse_args([])
    assert vars(options) == {
        "node_name": "n1",
        "provider": "eci",
        "eci_socket": "/s",
        "metadata_endpoint": "http://[fd00:ec2::254]:8080",
        "poll_seconds": 0.5,
        "metrics_port": 1234,
        "drain": False,
        "dry_run": True,
        "on_rebalance": Response.DRAIN,
        "on_maintenance": Response.IGNORE,
        "pod_name": "p",
        "pod_namespace": "ns",
        "log_level": "debug",
    }
    assert parser(env).parse_args(["--node-name", "n2", "--drain", "true"]).drain is True


def test_defaults_need_only_the_node() -> None:
    options = parser({"NODE_NAME": "n1"}).parse_args([])
    assert (options.eci_socket, options.poll_seconds) == ("/run/eci-guest-agent.sock", 1.0)
    assert (options.drain, options.dry_run, options.metrics_port) == (True, False, 9808)
    assert (options.on_rebalance, options.on_maintenance) == (Response.TAINT, Response.TAINT)


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({}, "--node-name"),
        ({"NODE_NAME": "n", "SPOT_PROVIDER": "dec"}, "'dec' is none of the known providers: eci"),
        *(
            ({"NODE_NAME": "n", "SPOT_METADATA_ENDPOINT": wrong}, f"{wrong!r} is not of the form http://host")
            for wrong in ("here", "http://", "ftp://h", "http://h/latest", "http://h:x", "http://h?a=b")
        ),
        ({"NODE_NAME": "n", "SPOT_POLL_SECONDS": "0"}, "not between 0.05 and 60 seconds"),
        ({"NODE_NAME": "n", "SPOT_POLL_SECONDS": "often"}, "--poll-seconds"),
        ({"NODE_NAME": "n", "SPOT_ON_REBALANCE": "panic"}, "'panic' is none of taint, drain, ignore"),
        ({"NODE_NAME": "n", "SPOT_DRAIN": "perhaps"}, "neither true nor false"),
        ({"NODE_NAME": "n", "SPOT_METRICS_PORT": "99999"}, "is no port"),
        ({"NODE_NAME": "n", "SPOT_LOG_LEVEL": "loud"}, "is none of"),
    ],
)
def test_bad_settings_are_named(
    env: dict[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser(env).parse_args([])
    assert complaint in capsys.readouterr().err


def test_outside_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("NODE_NAME", "n1")
    with pytest.raises(SystemExit, match="KUBERNETES_SERVICE_HOST"):
        main([])


def test_log_lines_are_json_with_the_notice() -> None:
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("pod %s", "gone", extra=fields(notice="eci-1", grace=5))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in sink.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {"level": "warning", "message": "pod gone", "notice": "eci-1", "grace": 5}
    assert "two\nlines" in second["error"]


def test_the_agent_needs_none_of_the_operators_libraries() -> None:
    heavy = ("kopf", "kubernetes", "pydantic", "yaml", "torch")
    code = f"import sys, spot_training.node.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_only_the_chosen_providers_module_is_imported(provider: str) -> None:
    code = (
        "import sys, spot_training.node.main\n"
        "from spot_training.node.sources.choice import PROVIDERS, choose\n"
        f"choose({provider!r})\n"
        "print([name for name in PROVIDERS if f'spot_training.node.sources.{name}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"[{provider!r}]"
    assert choose(provider).name == provider


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(ValueError, match="'dec' is none of the known providers: eci, aws"):
        choose("dec")


def test_ecis_socket_has_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(SystemExit, match="eci is asked at its socket"):
        main(["--node-name", "n1", "--metadata-endpoint", "http://127.0.0.1:1"])


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "eci"])
async def test_a_cloud_is_asked_at_its_endpoint(provider: str) -> None:
    async with service() as cloud:
        await choose(provider, endpoint=cloud.address).ask()
    assert cloud.requests
