"""Ways to the test cluster's API server for the project's own client: as its administrator, or with a token."""

import base64
import json
import ssl
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from spot_training.cluster.client import Connection
from tests.kit import layout, network
from tests.kit.kube import kubectl

Json = dict[str, Any]


def administrator() -> Connection:
    """The connection of the kubeconfig's user, who is known by a certificate."""
    view: Json = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    user = view["users"][0]["user"]
    connection = nobody(view)
    assert connection.tls is not None
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory, "certificate"), Path(directory, "key")
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        connection.tls.load_cert_chain(certificate, key)
    return connection


def bearer(token: str) -> Connection:
    """The connection of whoever has this token."""
    return replace(nobody(), token=token)


def nobody(view: Json | None = None) -> Connection:
    """A connection that is known by nothing: to the API server's own address, as the nodes have it."""
    view = view or json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    cluster = view["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    server = f"https://{network.address(layout.CONTROL_PLANE)}:6443"
    return Connection(server, ssl.create_default_context(cadata=authority))
