"""The image of kind's nodes: the published one, or one that is made here from packages and Go modules.

The made one follows kind's own build: a Debian root file system with kind's files and the Kubernetes binaries
(`node.Dockerfile`); then containerd is run in a container of it to take in the images of the control plane,
and the container is committed. Two things are not as in the published one: it has no kindnet (see
`network.py`) and no volume provisioner (tests make their volumes, see `volumes.py`).
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit import debian, engine, gotools, machine, places, versions
from tests.kit.shell import CommandError, pipe, run, step, wait_until

_HERE: Final = Path(__file__).parent
_NODE_PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "conntrack", "iptables", "nftables", "iproute2", "ethtool"),
    *("util-linux", "mount", "kmod", "libseccomp2", "e2fsprogs", "bash", "ca-certificates", "curl", "jq"),
    *("procps", "runc", "containernetworking-plugins"),
)
_NODE_PROGRAMS: Final = {
    "/usr/bin": ("kubeadm", "kubelet", "kubectl"),
    "/usr/local/bin": ("containerd", "containerd-shim-runc-v2", "ctr"),
}
_NAME: Final = "spot-training-node"
_PROXY_PACKAGES: Final = ("nftables", "conntrack", "kmod")
_REGISTRY: Final = "registry.k8s.io"
_PAUSE: Final = f"{_REGISTRY}/pause:{versions.PAUSE_TAG}"
_IMAGES: Final = {
    **{
        name: f"{_REGISTRY}/{name}:{versions.KUBERNETES}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    },
    "etcd": f"{_REGISTRY}/etcd:{versions.ETCD_TAG}",
    "coredns": f"{_REGISTRY}/coredns/coredns:{versions.COREDNS_TAG}",
    "pause": _PAUSE,
}
_STORAGE: Final = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
"""
PROGRAMS: Final = frozenset({*_IMAGES, *(name for names in _NODE_PROGRAMS.values() for name in names)})
"""The programs that a made image consists of."""


@dataclass(frozen=True)
class NodeImage:
    """`has_network` says whether kind installs its own pod network (kindnet) from this image."""

    reference: str
    has_network: bool


def ensure() -> NodeImage:
    """Have the engine hold a node image that works on this machine."""
    if engine.pull(versions.KIND_NODE_IMAGE):
        if not machine.lacks_cap_sys_resource():
            return NodeImage(versions.KIND_NODE_IMAGE, has_network=True)
        reference = f"{_NAME}:{versions.KIND_NODE_IMAGE.split('@sha256:')[1][:12]}-lessened"
        if not debian.has_image(reference):
            with step("taking out of the node image what this machine cannot give"):
                _commit(versions.KIND_NODE_IMAGE, reference)
        return NodeImage(reference, has_network=True)
    reference = made_reference()
    if not debian.has_image(reference):
        gotools.ensure(set(PROGRAMS))
        _make(reference)
    return NodeImage(reference, has_network=False)


def file_systems() -> tuple[Path, Path]:
    """The Debian parts of a made image: the node's root, and what kube-proxy needs around it."""
    return (
        debian.root_file_system("node", versions.NODE_DEBIAN, "minbase", _NODE_PACKAGES),
        debian.root_file_system("kube-proxy", versions.NODE_DEBIAN, "extract", _PROXY_PACKAGES),
    )


def made_reference() -> str:
    """The name of the image that would be made here; it holds a hash of everything that goes in."""
    parts = [
        *(
            f"{path.name} {path.read_text()}"
            for path in (Path(__file__), _HERE / "node.Dockerfile", _HERE / "pause.go")
        ),
        repr(versions.PROGRAMS),
        versions.NODE_DEBIAN,
        str(machine.lacks_cap_sys_resource()),
    ]
    return f"{_NAME}:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


def remove_others(reference: str) -> None:
    """Remove the images that former versions of the kit made: each takes a gigabyte."""
    names = engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", _NAME).split()
    others = [name for name in names if not name.startswith(reference)]
    if others:
        engine.docker("image", "rm", *others)


def _make(reference: str) -> None:
    root, proxy_root = file_systems()
    with step("making the control plane's images"):
        for name, image in _IMAGES.items():
            _import_program(name, image, proxy_root if name == "kube-proxy" else None)
    base = f"{reference}-base"
    log = places.LOGS / "node-image.log"
    with step("making the node image", log):
        context = places.BUILD / f"node-image-{os.getpid()}"
        shutil.rmtree(context, ignore_errors=True)
        _stage(context / "files")
        root_image = f"{reference}-root"
        engine.docker("import", root, root_image)
        argv: list[str | Path] = [engine.client(), "build", "--build-arg", f"ROOT_FILE_SYSTEM={root_image}"]
        argv += ["-f", _HERE / "node.Dockerfile", "-t", base, context]
        run(argv, env=engine.environment(), log=log)
        shutil.rmtree(context)
    with step("putting the control plane's images into the node image"):
        _commit(base, reference, _IMAGES)


def _import_program(name: str, image: str, root: Path | None) -> None:
    """An image of one static binary in the place where Kubernetes looks for it; over `root` where given."""
    target = {"pause": "pause", "coredns": "coredns"}.get(name, f"usr/local/bin/{name}")
    temporary = places.BUILD / f"image-{name}-{os.getpid()}.tar"
    if root:
        shutil.copy(root, temporary)
    with tarfile.open(temporary, "a" if root else "w") as tar:
        entry = tar.gettarinfo(gotools.path(name), target)
        entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o755, 0, 0, "root", "root"
        with gotools.path(name).open("rb") as binary:
            tar.addfile(entry, binary)
    changes = [
        f'ENTRYPOINT ["/{target}"]',
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    engine.docker("import", *(word for change in changes for word in ("--change", change)), temporary, image)
    temporary.unlink()


def _stage(root: Path) -> None:
    """Lay out kind's own files and the binaries as they shall lie in the node."""
    kind_files = gotools.module_dir("sigs.k8s.io/kind") / "images" / "base" / "files"
    for source in kind_files.rglob("*"):
        if source.is_dir():
            continue
        target = root / source.relative_to(kind_files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        executable = "bin" in source.relative_to(kind_files).parts
        target.chmod(0o755 if executable else 0o644)
    for directory, names in _NODE_PROGRAMS.items():
        for name in names:
            target = root / directory.lstrip("/") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(gotools.path(name), target)
            target.chmod(0o755)
    configuration = root / "etc/containerd/config.toml"
    lines = configuration.read_text().splitlines()
    pinned = [f'  sandbox_image = "{_PAUSE}"' if "sandbox_image" in line else line for line in lines]
    configuration.write_text("\n".join(pinned) + "\n")
    (root / "kind/version").write_text(versions.KUBERNETES)
    manifests = root / "kind/manifests"
    manifests.mkdir()
    (manifests / "default-storage.yaml").write_text(_STORAGE)
    (manifests / "default-cni.yaml").write_text("")


def _commit(base: str, reference: str, images: Mapping[str, str] | None = None) -> None:
    """Run a container of `base`, give it `images`, lessen its units where needed, and commit it."""
    options = ["--security-opt", "seccomp=unconfined", "--entrypoint", "sleep"]
    container = engine.docker("run", "-d", *options, base, "infinity").strip()
    inside: list[str | Path] = [engine.client(), "exec", "-i", container]
    try:
        if images:
            run([engine.client(), "exec", "-d", container, "containerd"])
            _wait_for_containerd(inside)
            importer = [
                "ctr",
                "-n",
                "k8s.io",
                "images",
                "import",
                "--label",
                "io.cri-containerd.pinned=pinned",
            ]
            pipe(
                [engine.client(), "save", *images.values()],
                [*inside, *importer, "--all-platforms", "--no-unpack", "--digests", "-"],
            )
            run([*inside, "pkill", "containerd"])
        if machine.lacks_cap_sys_resource():
            _lessen(inside)
        entrypoint = 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]'
        engine.docker("commit", "--change", entrypoint, "--change", "CMD []", container, reference)
    finally:
        engine.docker("rm", "-f", "-v", container)


def _lessen(inside: list[str | Path]) -> None:
    """Take limits and scores that only CAP_SYS_RESOURCE can raise out of the units: systemd would fail on them."""
    units = "/etc/systemd/system/containerd.service /etc/systemd/system/kubelet.service"
    run([*inside, "sh", "-c", f"sed -i -E '/^(Limit[A-Z]+|OOMScoreAdjust)=/d' {units}"])


def _wait_for_containerd(inside: list[str | Path]) -> None:
    def ready() -> bool:
        with suppress(CommandError):
            run([*inside, "ctr", "version"])
            return True
        return False

    wait_until(
        "containerd in the container that becomes the node image", ready, timeout=60, seen=lambda: "no answer"
    )
