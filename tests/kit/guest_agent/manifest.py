"""The objects that put the simulated guest agent on every spot node, as its cloud would have done in the image."""

from pathlib import Path
from typing import Any, Final

from tests.kit import layout
from tests.kit.guest_agent import server

NAMESPACE: Final = "guest-agent-sim"
NAME: Final = "guest-agent"
IMAGE: Final = "spot-training-operator:dev"
_LABELS: Final = {"app": NAME}
_HOST_RUN: Final = Path("/host-run")


def manifests(image: str = IMAGE) -> list[dict[str, Any]]:
    """Namespace, script and DaemonSet; `image` is any that has `python3`."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": {"server.py": Path(server.__file__).read_text()},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": _LABELS},
                "template": {"metadata": {"labels": _LABELS}, "spec": _pod(image)},
            },
        },
    ]


def _pod(image: str) -> dict[str, Any]:
    socket, state = _in_pod(server.SOCKET), _in_pod(server.STATE)
    return {
        "nodeSelector": {layout.CAPACITY_TYPE: "spot"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-node-critical",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {
                "name": NAME,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python3", "/script/server.py", "--socket", socket, "--state", state],
                "readinessProbe": {"exec": {"command": ["test", "-S", socket]}, "periodSeconds": 2},
                # It stands for a daemon of the machine, not for a pod.
                "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
                "volumeMounts": [
                    {"name": "run", "mountPath": str(_HOST_RUN)},
                    {"name": "script", "mountPath": "/script", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "run", "hostPath": {"path": "/run", "type": "Directory"}},
            {"name": "script", "configMap": {"name": NAME}},
        ],
    }


def _in_pod(path: str) -> str:
    return str(_HOST_RUN / Path(path).relative_to("/run"))
