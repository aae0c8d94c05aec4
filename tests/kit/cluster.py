"""The test cluster: `python -m tests.kit.cluster up|down|status`.

`up` asks what is there and does only what is missing, so that it can be called before every run of the tests:
an engine, the programs, the images, the cluster, its nodes in order. A cluster that was made of other parts than
today's, or one of whose nodes does not run, is made anew: that takes less time than any repair that covers all cases.
"""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kit import debian, engine, gotools, layout, nodeimage, nodes, places, versions, volumes
from tests.kit.kube import get, kubectl, tool
from tests.kit.nodeimage import NodeImage
from tests.kit.places import KUBECONFIG
from tests.kit.shell import CommandError, run, say, step, together, wait_until

__all__ = ["KUBECONFIG", "down", "kubectl", "tool", "up"]

TOOLS: Final = frozenset({"kubectl", "kind", "helm"})
"""The programs that run on this machine rather than in a node."""


def up() -> None:
    """Have the cluster running and ready for pods. Safe to call at any time, quick when all is there."""
    began = time.monotonic()
    places.make_all()
    with _one_at_a_time():
        engine.ensure()
        image = _parts()
        configuration = layout.kind_configuration(image.has_network)
        wanted = layout.digest(image.reference, configuration)
        if not (_runs(wanted) and _settles()):
            _create(image, configuration, wanted)
            _settle()
        gotools.ensure(set(TOOLS))
    say(f"==> cluster {layout.CLUSTER} is ready, {time.monotonic() - began:.1f} s; kubeconfig: {KUBECONFIG}")


def down(with_engine: bool = False) -> None:
    """Delete the cluster; with `with_engine` also end the engine, where it was started by `up`."""
    with _one_at_a_time():
        if engine.answers():
            with step("deleting the cluster"):
                _delete()
            if with_engine:
                engine.stop()
        else:
            say("==> no container engine answers: no cluster to delete")


def status() -> bool:
    """Print what there is; True where the cluster's nodes all run."""
    if not engine.answers():
        print("engine: none answers")
        return False
    print(f"engine: answers to {engine.client()}{', started from here' if engine.started_here() else ''}")
    states = {name: nodes.container_state(name) for name in layout.NODES}
    for name, state in states.items():
        print(f"{name}: {state}")
    print(f"kubeconfig: {KUBECONFIG}")
    for name in sorted(TOOLS):
        print(f"{name}: {gotools.path(name)}{'' if gotools.path(name).exists() else ' (missing)'}")
    alive = all(state == "running" for state in states.values())
    if alive:
        print(kubectl("get", "nodes", "-L", "spot.training/pool,topology.kubernetes.io/zone"), end="")
    return alive


def _parts() -> NodeImage:
    """Have the programs and images; what comes over the network and what is compiled go side by side."""

    def programs() -> None:
        # Whether the published node image can be had decides how much there is to build.
        published = engine.pull(versions.KIND_NODE_IMAGE)
        needed = {"kind", "kubectl"}
        if not published and not debian.has_image(nodeimage.made_reference()):
            needed |= nodeimage.PROGRAMS
        gotools.ensure(needed)

    def file_systems() -> None:
        debian.ensure_base_image()
        if not engine.pull(versions.KIND_NODE_IMAGE) and not debian.has_image(nodeimage.made_reference()):
            nodeimage.file_systems()

    together(programs, file_systems)
    return nodeimage.ensure()


def _runs(wanted: str) -> bool:
    """Whether the cluster that is wanted runs, all nodes of it."""
    try:
        made = json.loads(places.CLUSTER_FILE.read_text())["digest"]
    except FileNotFoundError:
        return False
    if made != wanted:
        return False
    states = {name: nodes.container_state(name) for name in layout.NODES}
    if states[layout.CONTROL_PLANE] == "running":
        # Workers that a test or the demo took away are given back.
        for name in [name for name, state in states.items() if state in ("paused", "exited")]:
            states[name] = "running" if _revives(name) else states[name]
    for name, state in states.items():
        if state != "running":
            say(f"==> {name} is {state}: making the cluster anew")
    return all(state == "running" for state in states.values())


def _revives(name: str) -> bool:
    try:
        with step(f"giving {name} back"):
            nodes.restore_node(name)
    except (CommandError, TimeoutError) as failure:
        say(f"    {failure}")
        return False
    return True


def _settles() -> bool:
    """Whether the running cluster can be brought into order; if not, a new one is made."""
    try:
        with step("putting the nodes in order"):
            _settle(timeout=60)
    except (CommandError, TimeoutError) as failure:
        say(f"    {failure}\n==> the cluster does not come into order: making it anew")
        return False
    return True


def _create(image: NodeImage, configuration: str, digest: str) -> None:
    _delete()
    nodeimage.remove_others(image.reference)
    configuration_file = places.STATE / "kind.json"
    configuration_file.write_text(configuration)
    log = places.LOGS / "kind-create.log"
    log.unlink(missing_ok=True)
    with step(f"creating the cluster {layout.CLUSTER}, {len(layout.NODES)} nodes", log):
        argv: list[str | Path] = [tool("kind"), "create", "cluster", "--config", configuration_file]
        argv += ["--image", image.reference, "--kubeconfig", KUBECONFIG]
        run(argv, env=engine.environment(), log=log, timeout=600)
    made = {"digest": digest, "image": image.reference, "has_network": image.has_network}
    places.CLUSTER_FILE.write_text(json.dumps(made, indent=2))


def _settle(timeout: float = 180) -> None:
    """Nodes in order, names resolved, pods possible."""
    with step("waiting for nodes, coredns and the default service account"):
        nodes.settle(layout.NODES, timeout)
        wait_until("coredns", _coredns_is_ready, timeout=timeout, seen=_what_is_in_kube_system)
        wait_until(
            "the service account `default`",
            lambda: any(
                account["metadata"]["name"] == "default"
                for account in get("serviceaccounts", "-n", "default")
            ),
            timeout=timeout,
            seen=lambda: kubectl("get", "serviceaccounts", "-A"),
        )


def _coredns_is_ready() -> bool:
    status = get("deployment/coredns", "-n", "kube-system")[0].get("status", {})
    return int(status.get("readyReplicas", 0)) == int(status.get("replicas", -1))


def _what_is_in_kube_system() -> str:
    return kubectl("get", "pods", "-n", "kube-system", "-o", "wide") + kubectl("get", "nodes")


def _delete() -> None:
    """Remove the cluster's containers and their volumes, whatever state they are in, and what they shared."""
    label = f"label=io.x-k8s.kind.cluster={layout.CLUSTER}"
    containers = engine.docker("ps", "-aq", "--filter", label).split()
    together(*(lambda container=container: _remove(container) for container in containers))
    KUBECONFIG.unlink(missing_ok=True)
    for left in places.SHARED.iterdir():
        volumes.remove_shared(left)
    places.CLUSTER_FILE.unlink(missing_ok=True)


def _remove(container: str) -> None:
    engine.docker("rm", "-f", "-v", container)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two `up` at once would each make a cluster of the same name: the second waits for the first."""
    places.make_all()
    with (places.CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("waiting for another run of this command to end"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.cluster", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="have the cluster running")
    downward = commands.add_parser("down", help="delete the cluster")
    downward.add_argument(
        "--engine", action="store_true", help="also stop the Docker engine that `up` started"
    )
    commands.add_parser("status", help="say what there is")
    arguments = parser.parse_args()
    if arguments.command == "up":
        up()
    elif arguments.command == "down":
        down(with_engine=arguments.engine)
    elif not status():
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
