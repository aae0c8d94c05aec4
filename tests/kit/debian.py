"""Debian root file systems, made with mmdebstrap where no image registry can be reached.

Each lies in the cache as a tar, under a name that holds a hash of what it was asked to contain.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.kit import engine, machine, places, versions
from tests.kit.shell import run, step, succeeds

# What nobody reads inside a container, as in Debian's own slim images.
_SLIM: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


def root_file_system(
    name: str, release: str, variant: str, packages: Sequence[str], files: Mapping[str, str] | None = None
) -> Path:
    """A tar with `packages` of a Debian `release`; `variant` is mmdebstrap's, `files` are texts by their paths."""
    mirror = machine.debian_mirror()
    arguments = [
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={path}" for path in _SLIM),
        *(f"--aptopt={line}" for line in machine.apt_proxy()),
    ]
    contents = [word for item in sorted((files or {}).items()) for word in item]
    digest = hashlib.sha256("\n".join([release, mirror, *arguments, *contents]).encode()).hexdigest()[:12]
    tar = places.IMAGES / f"{name}-{release}-{digest}.tar"
    if tar.exists():
        return tar
    machine.install_packages("mmdebstrap")
    log = places.LOGS / f"mmdebstrap-{name}.log"
    with step(f"making a Debian {release} file system for {name}", log):
        temporary = tar.with_suffix(f".{os.getpid()}.tar")
        for number, (target, text) in enumerate((files or {}).items()):
            source = places.BUILD / f"{name}-{number}"
            source.write_text(text)
            arguments.append(f"--customize-hook=upload {source} {target}")
        security = f"{mirror.removesuffix('/debian')}/debian-security"
        sources = (
            f"deb {mirror} {release} main",
            f"deb {mirror} {release}-updates main",
            f"deb {security} {release}-security main",
        )
        run(["mmdebstrap", *arguments, release, temporary, *sources], log=log, timeout=900)
        temporary.rename(tar)
    return tar


def ensure_base_image() -> None:
    """Have the engine hold the image that the project's Dockerfiles start from: published, or made here.

    The made one has the name of the published one, so that the Dockerfiles need not know. What this machine
    needs to reach package registries (its certificates, proxies) is in it, so that a build can install.
    """
    if engine.pull(versions.BASE_IMAGE):
        return
    files = {
        str(machine.CA_BUNDLE): machine.CA_BUNDLE.read_text(),
        "/etc/pip.conf": machine.pip_configuration(),
        "/etc/apt/apt.conf.d/90machine": "".join(f"{line}\n" for line in machine.apt_proxy()),
    }
    tar = root_file_system("base", versions.BASE_DEBIAN, "minbase", ["ca-certificates"], files)
    with step(f"importing {versions.BASE_IMAGE}"):
        engine.docker("import", "--change", 'CMD ["bash"]', tar, versions.BASE_IMAGE)


def has_image(reference: str) -> bool:
    """Whether the engine holds an image of this name."""
    return succeeds([engine.client(), "image", "inspect", reference])
