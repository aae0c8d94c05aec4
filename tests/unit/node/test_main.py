"""The command line and its environment."""

import io
import json
import logging
import subprocess
import sys

import pytest

from spot_training.node.logs import JsonFormatter, fields
from spot_training.node.main import main, outlets, parser
from spot_training.node.metrics import Metrics
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
        "SPOT_WAIT_FOR_VOLUMES": "no",
        "SPOT_AZURE_APPROVE": "true",
        "SPOT_CLUSTER_NAME": "prod",
        "SPOT_WEBHOOK": "true",
        "SPOT_WEBHOOK_URL": "https://hooks.example.com/x",
        "SPOT_WEBHOOK_BODY": '{"content": "$text"}',
        "SPOT_HOOK_COMMAND": '["/bin/flush", "--all"]',
        "SPOT_HOOK_URL": "http://10.0.0.1:9000/notice",
        "SPOT_HOOK_TIMEOUT_SECONDS": "30",
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
        "wait_for_volumes": False,
        "azure_approve": True,
        "cluster_name": "prod",
        "webhook": True,
        "webhook_url": "https://hooks.example.com/x",
        "webhook_body": {"content": "$text"},
        "hook_command": ("/bin/flush", "--all"),
        "hook_url": "http://10.0.0.1:9000/notice",
        "hook_timeout_seconds": 30.0,
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
    assert (options.wait_for_volumes, options.azure_approve, options.cluster_name) == (True, False, "")
    assert (options.webhook, options.webhook_body) == (False, {"text": "$text"})
    assert outlets(options, Metrics()) == []


def outlets_of(**env: str) -> list[str]:
    found = outlets(parser({"NODE_NAME": "n1"} | env).parse_args([]), Metrics())
    return [type(outlet).__name__ for outlet in found]


def test_who_is_told() -> None:
    assert outlets_of(SPOT_WEBHOOK="true", SPOT_WEBHOOK_URL="https://hooks.example.com/x\n") == ["Webhook"]
    assert outlets_of(SPOT_HOOK_COMMAND='["true"]', SPOT_HOOK_URL="http://10.0.0.1") == [
        "CommandHook",
        "UrlHook",
    ]
    assert outlets_of(SPOT_WEBHOOK_URL="https://hooks.example.com/x") == []


@pytest.mark.parametrize("url", ["", "hooks.example.com/secret"])
def test_a_webhook_without_a_good_url_is_told_of_and_keeps_nobody_from_working(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert outlets_of(SPOT_WEBHOOK="true", SPOT_WEBHOOK_URL=url) == []
    assert "no message will be sent: the webhook's URL, from its Secret, is not a URL" in caplog.text
    assert "secret" not in caplog.text


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
        ({"NODE_NAME": "n", "SPOT_WEBHOOK_BODY": "text"}, "the webhook's body is not JSON"),
        ({"NODE_NAME": "n", "SPOT_WEBHOOK_BODY": '{"text": "$host"}'}, "body.text: $host is not known"),
        ({"NODE_NAME": "n", "SPOT_HOOK_COMMAND": "flush"}, "'flush' is not a JSON list of words"),
        ({"NODE_NAME": "n", "SPOT_HOOK_COMMAND": '["a", 5]'}, "is not a JSON list of words"),
        (
            {"NODE_NAME": "n", "SPOT_HOOK_URL": "10.0.0.1/x"},
            "'10.0.0.1/x' is not a URL that begins with http",
        ),
        ({"NODE_NAME": "n", "SPOT_HOOK_TIMEOUT_SECONDS": "0"}, "0 is not between 1 and 300 seconds"),
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


def test_what_tells_people_is_not_imported_where_nobody_is_told() -> None:
    code = (
        "import sys, spot_training.node.main\n"
        "print([name for name in ('webhook', 'hook') if f'spot_training.node.{name}' in sys.modules])"
    )
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
