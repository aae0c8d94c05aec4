"""Programs that run beside the cluster as processes of this machine, for the length of a `with` block."""

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kit.places import KUBECONFIG, LOGS
from tests.kit.shell import step, wait_until


@contextmanager
def running(
    name: str, words: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a controller as the kubeconfig's user; it is told to end at the end of the block.

    What it writes is in the log of its name. Raises RuntimeError where it ended by itself before that.
    """
    # Were this a pod, a controller would take the service account for its own.
    env = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
    env |= {"KUBECONFIG": str(KUBECONFIG), **(environment or {})}
    with log(name).open("wb") as sink:
        process = subprocess.Popen(
            bound(words),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}; see {log(name)}")
    finally:
        with step(f"stopping {name}"):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def bound(words: Sequence[str | Path], by: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, so that the kernel sends it this signal once the process that started it has ended, however.

    To the kernel it is the starting thread that counts: start it from one that lives as long as it is to run.
    """
    return ["setpriv", f"--pdeathsig={by.name.removeprefix('SIG')}", "--", *(str(word) for word in words)]


def wait_ready(name: str, process: subprocess.Popen[bytes], port: int, timeout: float = 60) -> None:
    """Wait until the controller says at `/readyz` that it works.

    Raises RuntimeError where it ended instead, TimeoutError with the last of its log.
    """

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{_said(name)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return False

    wait_until(f"{name} is ready", ready, timeout=timeout, every=0.1, seen=lambda: _said(name))


def free_ports(count: int, host: str = "") -> list[int]:
    """Ports that nobody listens at, each another one."""
    held = [socket.create_server((host, 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def log(name: str) -> Path:
    """Where the output of the program of that name goes."""
    return LOGS / f"{name}.log"


def _said(name: str) -> str:
    return log(name).read_text(errors="replace")[-4000:]
