"""Plays the cloud: `python -m tests.kit.guest_agent.control install|reclaim|withdraw|restore|uninstall`.

`reclaim` makes a node's guest agent announce the end of its machine; with `--kill` the machine then ends at that
moment, as on a real spot node. `withdraw` takes the announcement back. `restore` brings a killed machine back.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.kit import engine, layout, nodes, places
from tests.kit.guest_agent import manifest, server
from tests.kit.kube import apply, kubectl
from tests.kit.shell import say

_RECLAIMS: Final = places.STATE / "reclaims"
_MODULE: Final = "tests.kit.guest_agent.control"
_REPOSITORY: Final = Path(__file__).parents[3]


def install(image: str = manifest.IMAGE) -> None:
    """Put the guest agent on every spot node; returns when each has its socket."""
    apply(*manifest.manifests(image))
    kubectl(
        "-n",
        manifest.NAMESPACE,
        "rollout",
        "status",
        f"daemonset/{manifest.NAME}",
        "--timeout=120s",
        timeout=150,
    )


def uninstall() -> None:
    """Take it away again."""
    kubectl("delete", "namespace", manifest.NAMESPACE, "--ignore-not-found", "--wait=true")


def reclaim(node: str, in_seconds: float, kill: bool = False) -> datetime:
    """Announce that `node` ends in so many seconds; returns that time. With `kill` it then does.

    An announcement that is there already is replaced, and its kill is called off.
    """
    name = full_name(node)
    _call_off(name)
    # The wire format has whole seconds; rounded up, so that nobody gets less than was said.
    at = (datetime.now(UTC) + timedelta(seconds=in_seconds + 1)).replace(microsecond=0)
    state = server.STATE
    # By renaming: half a time must never be read.
    script = (
        f"mkdir -p {Path(state).parent} && echo '{at.isoformat()}' >{state}.new && mv {state}.new {state}"
    )
    engine.docker("exec", name, "sh", "-c", script)
    if kill:
        _kill_later(name, at)
    return at


def withdraw(node: str) -> None:
    """Announce nothing any more; a kill that was to come does not."""
    name = full_name(node)
    _call_off(name)
    engine.docker("exec", name, "rm", "-f", server.STATE)


def restore(node: str) -> None:
    """Bring the node back, with nothing announced; returns when it is Ready. Its marks are the agent's to take off."""
    name = full_name(node)
    _call_off(name)
    nodes.restore_node(name)
    engine.docker("exec", name, "rm", "-f", server.STATE)


def full_name(node: str) -> str:
    """The node's name from itself or from its last part, such as `worker2`."""
    for name in layout.WORKER_NAMES:
        if node in (name, name.removeprefix(f"{layout.CLUSTER}-")):
            return name
    raise ValueError(f"no worker {node!r}; there are: {', '.join(layout.WORKER_NAMES)}")


def _kill_later(name: str, at: datetime) -> None:
    """Start a process of its own that outlives this command, and note its id."""
    _RECLAIMS.mkdir(parents=True, exist_ok=True)
    with (_RECLAIMS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, "kill-at", "--node", name, "--at", at.isoformat()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_REPOSITORY,
            start_new_session=True,
        )
    _pid_file(name).write_text(str(process.pid))


def _kill_at(name: str, at: datetime) -> None:
    time.sleep(max(0.0, at.timestamp() - time.time()))
    # From here on there is nothing left to call off.
    _pid_file(name).unlink(missing_ok=True)
    nodes.kill_node(name)


def _call_off(name: str) -> None:
    file = _pid_file(name)
    try:
        pid = int(file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        words, pid = [], 0
    if _MODULE in words and name in words:
        os.kill(pid, signal.SIGTERM)
    file.unlink(missing_ok=True)


def _pid_file(name: str) -> Path:
    return _RECLAIMS / f"{name}.pid"


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("install", help="put the guest agent on every spot node")
    command.add_argument("--image", default=manifest.IMAGE, help="any image with python3 that the nodes have")
    commands.add_parser("uninstall", help="take it away")
    for name, text in (
        ("reclaim", "announce that a node is taken away"),
        ("withdraw", "take the announcement back"),
        ("restore", "bring a killed node back"),
        ("kill-at", "what `reclaim --kill` runs in the background"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--node", required=True, help="its name, or the last part of it, such as worker2"
        )
        if name == "reclaim":
            command.add_argument("--in-seconds", type=float, default=60.0, help="from now (60)")
            command.add_argument("--kill", action="store_true", help="kill the node at that moment")
        if name == "kill-at":
            command.add_argument("--at", type=datetime.fromisoformat, required=True, help="ISO 8601")
    return _run(parser.parse_args())


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "install":
            install(options.image)
        case "uninstall":
            uninstall()
        case "reclaim":
            at = reclaim(options.node, options.in_seconds, options.kill)
            say(
                f"==> {full_name(options.node)} is taken away at {at.isoformat()}{', for real' if options.kill else ''}"
            )
        case "withdraw":
            withdraw(options.node)
        case "restore":
            restore(options.node)
        case "kill-at":
            _kill_at(full_name(options.node), options.at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
