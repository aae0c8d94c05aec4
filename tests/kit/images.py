"""Container images for tests: built by the engine, put into the nodes' containerd.

    python -m tests.kit.images build-and-load TAG DOCKERFILE CONTEXT

A node that has the very image under the name already is left alone. For the others the image is saved once, but for
the layers that all of them have, into the directory that all workers mount, and every node reads it from there at
the same time: piping it into each node would copy it once more per node through the engine.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from tests.kit import debian, engine, layout, places
from tests.kit.archive import write_lacking
from tests.kit.shell import CommandError, pipe, run, step, together

_HANDOVER: Final = ".images"
"""Where in the shared directory saved images lie while nodes read them."""


def build_image(
    tag: str, dockerfile: Path, context: Path, build_args: Mapping[str, str] | None = None
) -> str:
    """Build an image with the engine; returns its id. The build uses this machine's network.

    The classic builder is used where the engine has no BuildKit; both leave unchanged steps alone.
    """
    arguments = [
        word for name, value in (build_args or {}).items() for word in ("--build-arg", f"{name}={value}")
    ]
    # The Dockerfiles' base; somebody may have cleared the engine's images since the cluster was made.
    debian.ensure_base_image()
    log = places.LOGS / f"build-{_file_name(tag)}.log"
    log.unlink(missing_ok=True)
    with step(f"building the image {tag}", log):
        options = ["--network=host", "-f", str(dockerfile), "-t", tag]
        run(
            [engine.client(), "build", *options, *arguments, context],
            env=engine.environment(),
            log=log,
            timeout=1800,
        )
    return image_id(tag)


def image_id(tag: str) -> str:
    """The engine's id of an image, such as `sha256:05573a…`. Raises CommandError where there is none."""
    return engine.docker("image", "inspect", "--format", "{{.Id}}", tag).strip()


def load_image(tag: str, nodes: Sequence[str] = layout.WORKER_NAMES) -> None:
    """Have all `nodes` hold the engine's image of this tag. Pods need `imagePullPolicy: IfNotPresent` or Never."""
    identity = image_id(tag)
    lacking = [node for node in nodes if not _has(node, tag, identity)]
    if not lacking:
        return
    with step(f"loading {tag} into {', '.join(lacking)}"):
        held = set.intersection(*(_held_content(node) for node in lacking))
        try:
            _hand_over(tag, identity, lacking, held)
        except CommandError:
            # A layer may be listed and on its way out, with an image that was deleted: then send all of them.
            if not held:
                raise
            _hand_over(tag, identity, lacking, set())


def _hand_over(tag: str, identity: str, nodes: Sequence[str], held: Set[str]) -> None:
    directory = places.SHARED / _HANDOVER
    directory.mkdir(exist_ok=True)
    archive = directory / f"{identity.removeprefix('sha256:')[:16]}-{os.getpid()}.tar"
    saver: list[str | Path] = [engine.client(), "save", tag]
    try:
        with subprocess.Popen(saver, stdout=subprocess.PIPE) as source:
            assert source.stdout is not None
            write_lacking(source.stdout, archive, _full_name(tag), held)
        together(*(lambda node=node: _import(node, archive) for node in nodes))
    finally:
        archive.unlink(missing_ok=True)


def _import(node: str, archive: Path) -> None:
    # --local: read by ctr itself. Through containerd's transfer service the same takes twice as long.
    importer = ["ctr", "-n", "k8s.io", "images", "import", "--local"]
    if node in layout.WORKER_NAMES:
        engine.docker("exec", node, *importer, f"{layout.SHARED_MOUNT}/{_HANDOVER}/{archive.name}")
    else:
        pipe(["cat", archive], [engine.client(), "exec", "-i", node, *importer, "-"])


def _held_content(node: str) -> set[str]:
    """The digests of everything that a node's containerd has stored."""
    return set(engine.docker("exec", node, "ctr", "-n", "k8s.io", "content", "list", "-q").split())


def _has(node: str, tag: str, identity: str) -> bool:
    """Whether a node's `tag` is the image of this id.

    The engine's id of an image is the digest of its configuration, which a node's manifest names; engines that
    store images as containerd does give the manifest's own digest.
    """
    ctr = ["exec", node, "ctr", "-n", "k8s.io"]
    lines = engine.docker(*ctr, "images", "list", f"name=={_full_name(tag)}").splitlines()
    if len(lines) < 2:
        return False
    digest = lines[1].split()[2]
    manifest: dict[str, Any] = json.loads(engine.docker(*ctr, "content", "get", digest))
    return identity in (digest, manifest.get("config", {}).get("digest"))


def _full_name(tag: str) -> str:
    """The name of a tag in a node: `debian:x` is `docker.io/library/debian:x` there."""
    repository = tag if ":" in tag.rsplit("/", 1)[-1] else f"{tag}:latest"
    first, slash, _ = repository.partition("/")
    if not slash:
        return f"docker.io/library/{repository}"
    return repository if "." in first or ":" in first or first == "localhost" else f"docker.io/{repository}"


def _file_name(tag: str) -> str:
    return tag.replace("/", "_").replace(":", "_")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kit.images", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build-and-load", help="build an image and load it into the workers")
    build.add_argument("tag")
    build.add_argument("dockerfile", type=Path)
    build.add_argument("context", type=Path)
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    build_args = dict(pair.split("=", 1) for pair in arguments.build_arg)
    build_image(arguments.tag, arguments.dockerfile, arguments.context, build_args)
    load_image(arguments.tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())
