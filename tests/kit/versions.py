"""Every version that the test cluster is made of, in one place.

What comes from Go modules is pinned here and checked against the Go checksum database; what comes from
Debian follows the Debian release named here.

Kubernetes is the minor version of kind's own default node image, so that a machine that can pull that image
and a machine that makes one from packages run the same version.
"""

from dataclasses import dataclass
from typing import Final

GO: Final = "1.26.8"
"""The Go version that the newest of the modules below asks for (containerd)."""

KUBERNETES: Final = "v1.37.1"
KUBERNETES_STAGING: Final = "v0.37.1"
"""The version under which the `k8s.io/*` libraries of that Kubernetes release are published."""

KIND_NODE_IMAGE: Final = (
    "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"
)
"""The image that kind names as its default, in `pkg/apis/config/defaults/image.go` of its module."""

NODE_DEBIAN: Final = "bookworm"
"""The Debian release of a node image that is made here."""

BASE_DEBIAN: Final = "trixie"
BASE_IMAGE: Final = "debian:trixie-slim"
"""The image that this project's Dockerfiles name in `FROM`."""

ETCD_TAG: Final = "3.7.0-0"
COREDNS_TAG: Final = "v1.14.6"
PAUSE_TAG: Final = "3.10.2"
"""The tags that this Kubernetes version's kubeadm gives to the three images it does not version itself."""


@dataclass(frozen=True)
class Program:
    """Programs that are built together out of one Go module.

    `packages` maps the name of each binary to its package. `variables` are set by the linker's `-X`:
    programs that are released by a build script learn their own version that way only.
    """

    module: str
    version: str
    packages: dict[str, str]
    variables: dict[str, str]


def _kubernetes_variables() -> dict[str, str]:
    """Version variables of every Kubernetes binary; kubeadm refuses to work without them."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {
        "gitVersion": KUBERNETES,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{name}": value for package in packages for name, value in values.items()}


def _commands(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}/cmd/{name}" for name in names}


PROGRAMS: Final = (
    Program("sigs.k8s.io/kind", "v0.33.0", {"kind": "sigs.k8s.io/kind"}, {}),
    Program(
        "k8s.io/kubernetes",
        KUBERNETES,
        _commands(
            "k8s.io/kubernetes",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubeadm",
            "kubectl",
        ),
        _kubernetes_variables(),
    ),
    Program(
        "github.com/containerd/containerd/v2",
        "v2.3.7",
        _commands("github.com/containerd/containerd/v2", "containerd", "containerd-shim-runc-v2", "ctr"),
        {"github.com/containerd/containerd/v2/version.Version": "v2.3.7"},
    ),
    Program("sigs.k8s.io/kwok", "v0.8.0", _commands("sigs.k8s.io/kwok", "kwok"), {}),
    Program("go.etcd.io/etcd/server/v3", "v3.7.0", {"etcd": "go.etcd.io/etcd/server/v3"}, {}),
    Program("github.com/coredns/coredns", "v1.14.6", {"coredns": "github.com/coredns/coredns"}, {}),
    Program(
        "helm.sh/helm/v4",
        "v4.3.1",
        _commands("helm.sh/helm/v4", "helm"),
        {"helm.sh/helm/v4/internal/version.version": "v4.3.1"},
    ),
    Program(
        "github.com/aws/amazon-ec2-metadata-mock",
        "v1.12.0",
        {"ec2-metadata-mock": "github.com/aws/amazon-ec2-metadata-mock/cmd"},
        {},
    ),
    Program("sigs.k8s.io/karpenter", "v1.14.0", {"karpenter": "sigs.k8s.io/karpenter/kwok"}, {}),
    Program("sigs.k8s.io/kueue", "v0.14.0", {"kueue": "sigs.k8s.io/kueue/cmd/kueue"}, {}),
)
"""In the order of building: what a node image needs comes before what only tests need."""
