"""Operator processes on this machine, against the test cluster: what a test can kill, freeze and look into.

They run the working tree's code and are known to the API server as the kubeconfig's user. While they run, the installed
operator is away: two that follow different Leases would both act.
"""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit import install
from tests.kit.kube import get, kubectl
from tests.kit.places import KUBECONFIG
from tests.kit.process import bound, free_ports
from tests.kit.shell import wait_until


class Operator:
    """One operator process, a candidate for the Lease `namespace/leader`; `log` is what it has written."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self._ports = free_ports(2)
        self._log = directory / f"operator-{self._ports[0]}.log"
        words = [
            *(sys.executable, "-m", "spot_training", "operator", f"--lease={namespace}/leader"),
            *(f"--liveness=http://127.0.0.1:{self._ports[0]}/healthz", f"--metrics-port={self._ports[1]}"),
        ]
        # Were this a pod, the operator would take the service account for its own.
        env = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
        env |= {"KUBECONFIG": str(KUBECONFIG), "PYTHONPATH": str(install.ROOT / "operator")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(bound(words), env=env, stdout=log, stderr=subprocess.STDOUT)
        self.name = f"{socket.gethostname()}_{self._process.pid}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def metrics(self) -> dict[str, float]:
        """What it says about itself, by metric, summed over labels; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[1]}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        summed: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                name = sample.partition("{")[0]
                summed[name] = summed.get(name, 0.0) + float(value)
        return summed

    @property
    def leading(self) -> bool:
        return self.metrics().get("spot_operator_leader") == 1.0

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_standing_by(self) -> None:
        """Wait until it has listed everything, and answers, and either leads or could."""
        wait_until(
            f"operator {self.name} stands by",
            lambda: "stands by" in self.log and bool(self.metrics()),
            timeout=60,
            seen=self.seen,
        )

    def wait_leading(self, timeout: float = 60) -> None:
        wait_until(
            f"operator {self.name} leads", lambda: self.leading, timeout=timeout, every=0.05, seen=self.seen
        )

    def wait_deposed(self) -> None:
        """Wait until it answers, does not lead, and has said that it does no more."""
        wait_until(
            f"operator {self.name} leads no more",
            lambda: self.metrics().get("spot_operator_leader") == 0.0 and "leads no more" in self.log,
            timeout=30,
            seen=self.seen,
        )

    def seen(self) -> str:
        return f"{lease(self.namespace)}\n{self.log}"

    def kill(self) -> None:
        """SIGKILL: it can say nothing any more."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and finds out nothing, until it is thawed."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, as kubelet does; its exit code."""
        self.thaw()
        self._process.terminate()
        return self._process.wait(30)

    def end(self) -> None:
        """Whatever it is doing."""
        if self._process.poll() is None:
            self.kill()


def lease(namespace: str) -> dict[str, Any]:
    """The Lease's spec; empty where there is none."""
    found = [each for each in get("leases", "-n", namespace) if each["metadata"]["name"] == "leader"]
    spec: dict[str, Any] = found[0]["spec"] if found else {}
    return spec


@contextmanager
def installed_operator_away() -> Iterator[None]:
    """The installed operator has ended; afterwards it is back, and its replicas are ready."""
    deployment = f"deployment/{install.RELEASE}"
    words = ["-n", install.NAMESPACE]
    before = get(deployment, *words)[0]["spec"]["replicas"]
    selector = f"app.kubernetes.io/instance={install.RELEASE},app.kubernetes.io/component=operator"
    kubectl(*words, "scale", deployment, "--replicas=0")
    try:
        wait_until(
            "the installed operator away",
            lambda: not get("pods", *words, "-l", selector),
            timeout=90,
            seen=lambda: kubectl(*words, "get", "pods"),
        )
        yield
    finally:
        kubectl(*words, "scale", deployment, f"--replicas={before}")
        kubectl(*words, "rollout", "status", deployment, "--timeout=90s")
