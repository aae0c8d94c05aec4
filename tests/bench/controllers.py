"""The controller manager with other flags for a while, and waiting until it has nothing left to do."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.bench.costs import written
from tests.kit import layout
from tests.kit.engine import client as client_program
from tests.kit.engine import docker
from tests.kit.kube import kubectl
from tests.kit.shell import run, wait_until

MANIFEST: Final = "/etc/kubernetes/manifests/kube-controller-manager.yaml"
HEARTBEATS: Final = ("leases", "nodes/status", "events")
QUIET: Final = 5.0
"""Writes in a second, besides heartbeats: what a cluster of four nodes makes by itself."""
QUIET_SECONDS: Final = 3.0
SETTLED_SECONDS: Final = 900.0
"""The controller manager takes 28 nodes in a second for ready, and clears away twenty services."""


@contextmanager
def controller_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """The controller manager with more flags, while the context lasts; kubelet restarts it from its manifest."""
    before = docker("exec", layout.CONTROL_PLANE, "cat", MANIFEST)
    manifest: dict[str, Any] = yaml.safe_load(before)
    manifest["spec"]["containers"][0]["command"] += [f"--{name}={value}" for name, value in flags.items()]
    _write_manifest(json.dumps(manifest))
    try:
        yield
    finally:
        _write_manifest(before)


async def settled(within: float = SETTLED_SECONDS) -> None:
    """Wait until the cluster writes nothing but heartbeats: what was deleted goes on being cleared away for long.

    Raises TimeoutError that says what is still written.
    """
    began = time.monotonic()
    before = _writes()
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        after = _writes()
        grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
        if sum(grown.values()) <= QUIET * QUIET_SECONDS:
            return
        if time.monotonic() - began > within:
            raise TimeoutError(f"the cluster does not come to rest within {within:.0f} s: {grown}")
        before = after


def _writes() -> dict[str, float]:
    return {name: value for name, value in written().items() if name.split()[1] not in HEARTBEATS}


def _write_manifest(text: str) -> None:
    before = _leader()
    argv: list[str | Path] = [
        client_program(),
        "exec",
        "-i",
        layout.CONTROL_PLANE,
        "sh",
        "-c",
        f"cat > {MANIFEST}",
    ]
    run(argv, stdin=text)
    wait_until("another controller manager leads", lambda: _leader() != before, timeout=120, seen=_leader)


def _leader() -> str:
    return kubectl(
        "-n",
        "kube-system",
        "get",
        "lease",
        "kube-controller-manager",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    )
