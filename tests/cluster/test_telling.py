"""Webhook and hooks from the chart's values to the receiver, by way of kubelet and in a container that may do little.

A second agent beside the node's own hears of a notice that is soon withdrawn, and only cordons the node for it.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.cluster.rendering import workloads
from tests.kit import install, layout
from tests.kit.kube import apply, get, kubectl
from tests.kit.shell import wait_until

NODE: Final = layout.WORKERS[2].name
PORT: Final = 18989
REPOSITORY, TAG = install.OPERATOR_IMAGE.split(":")

RECEIVER: Final = """
import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

AT = (datetime.now(UTC) + timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%SZ")

class Handler(BaseHTTPRequestHandler):
    left = 6

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        self.answer(200, b"token")

    def do_GET(self):
        if self.path.endswith("/spot/instance-action") and Handler.left:
            Handler.left -= 1
            return self.answer(200, json.dumps({"action": "terminate", "time": AT}).encode())
        self.answer(404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(json.dumps({"to": self.path, "body": json.loads(body)}), flush=True)
        self.answer(200)

    def log_message(self, *_):
        pass

HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""

COMMAND: Final = """
import json, os, sys, urllib.request
body = json.dumps({"occasion": os.environ["SPOT_OCCASION"], "names": sorted(os.environ), "user": os.getuid()})
urllib.request.urlopen(urllib.request.Request(sys.argv[1], body.encode(), method="POST"))
"""


@pytest.fixture
def name() -> Iterator[str]:
    """The name of the two pods and the Secret; they and their marks are gone afterwards."""
    made = f"telling-{secrets.token_hex(3)}"
    yield made
    where = ["-n", install.NAMESPACE, "--ignore-not-found"]
    kubectl("delete", "pod", f"{made}-agent", f"{made}-receiver", *where, "--grace-period=1", "--wait=true")
    kubectl("delete", "secret", made, *where)
    if marked():
        # The node's own agent looks at the marks when it starts.
        own = ["-l", "app.kubernetes.io/component=agent", "--field-selector", f"spec.nodeName={NODE}"]
        kubectl("delete", "pod", "-n", install.NAMESPACE, *own)


def marked() -> bool:
    spec = get(f"node/{NODE}")[0]["spec"]
    return any(taint["key"] == "spot.training/reclaim" for taint in spec.get("taints", []))


def pod(called: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": called, "namespace": install.NAMESPACE, "labels": {"app": called}}
    own = {"nodeName": NODE, "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec | own}


def receiver(called: str) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": install.OPERATOR_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", RECEIVER, str(PORT)],
    }
    return pod(called, {"hostNetwork": True, "containers": [container]})


def agent(called: str, secret: str, address: str) -> dict[str, Any]:
    values = {
        "drain": False,
        "clusterName": "kind",
        "webhook": {"secretName": secret, "body": {"content": "$occasion of $node costs $$5"}},
        "hook": {
            "command": ["/opt/venv/bin/python", "-c", COMMAND, f"http://$(HOST_IP):{PORT}/command"],
            "url": f"http://$(HOST_IP):{PORT}/url",
        },
        "providers": {
            "eci": {"enabled": False},
            "aws": {"enabled": True, "endpoint": f"http://{address}:{PORT}"},
        },
    }
    image = json.dumps({"repository": REPOSITORY, "tag": TAG})
    template = workloads("--set-json", f"agent={json.dumps(values)}", "--set-json", f"image={image}")["agent"]
    del template["spec"]["affinity"]
    return pod(called, template["spec"])


def told(called: str) -> list[dict[str, Any]]:
    log = kubectl("logs", "-n", install.NAMESPACE, called)
    return [json.loads(line) for line in log.splitlines()]


@pytest.mark.spot_nodes
def test_notices_and_their_ends_arrive(name: str) -> None:
    addresses = get(f"node/{NODE}")[0]["status"]["addresses"]
    address = next(each["address"] for each in addresses if each["type"] == "InternalIP")
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": install.NAMESPACE},
        "stringData": {"url": f"http://{address}:{PORT}/webhook\n"},
    }
    apply(secret, receiver(f"{name}-receiver"))
    kubectl("wait", "-n", install.NAMESPACE, "--for=condition=Ready", f"pod/{name}-receiver", "--timeout=60s")
    apply(agent(f"{name}-agent", name, address))

    def seen() -> str:
        return kubectl("logs", "-n", install.NAMESPACE, f"{name}-agent")

    wait_until("all that is told", lambda: len(told(f"{name}-receiver")) >= 4, timeout=60, seen=seen)
    wait_until("a node without marks", lambda: not marked(), timeout=30, seen=seen)
    found = told(f"{name}-receiver")
    assert [each["body"] for each in found if each["to"] == "/webhook"] == [
        {"content": f"notice of {NODE} costs $5"},
        {"content": f"withdrawn of {NODE} costs $5"},
    ]
    (called,) = [each["body"] for each in found if each["to"] == "/url"]
    assert (called["node"], called["cluster"], called["occasion"]) == (NODE, "kind", "notice")
    (ran,) = [each["body"] for each in found if each["to"] == "/command"]
    assert (ran["occasion"], ran["user"]) == ("notice", 65532)
    assert "SPOT_DEADLINE" in ran["names"] and "SPOT_WEBHOOK_URL" not in ran["names"]
