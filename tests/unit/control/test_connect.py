"""How an operator that is run by hand is known to the API server."""

import json
from pathlib import Path

import pytest

from spot_training.control.connect import connection


def kubeconfig(path: Path, user: dict[str, object]) -> Path:
    made = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://server.invalid:6443"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize(("user", "token"), [({"token": "mine"}, "mine"), ({}, None)])
def test_by_the_token_of_the_kubeconfig(
    user: dict[str, object], token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", user)))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config")
    )
    made = connection()
    assert (made.server, made.token) == ("https://server.invalid:6443", token)
