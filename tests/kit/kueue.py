"""A real Kueue: its manager as a process of this machine, with the CRDs and webhooks of the chart in its module.

It makes its certificates itself, as it does where it is installed without cert-manager. What a cluster would do for its
pod is done here: its Secret is laid into its directory, and its Service has this machine for an endpoint. Its webhooks
and its eye are on one namespace only.
"""

import base64
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kit import gotools, layout, network, places, process
from tests.kit.kube import apply, get, kubectl, tool
from tests.kit.shell import run, step, wait_until

Json = dict[str, Any]

MODULE: Final = "sigs.k8s.io/kueue"
NAMESPACE: Final = "kueue-system"
SERVICE: Final = "kueue-webhook-service"
SECRET: Final = "kueue-webhook-server-cert"
WEBHOOKS: Final = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
MANAGED: Final = "kueue.x-k8s.io/managed"
"""A label of the pods that it looks after, and a finalizer of theirs."""
KINDS: Final = frozenset({"CustomResourceDefinition", "Secret", *WEBHOOKS})
"""Of its chart. The roles would be for a service account; the rest is its Deployment and how to look at it."""


def queue(name: str, namespace: str, gpus: int) -> list[Json]:
    """A LocalQueue of that name, on a ClusterQueue of its own, whose quota is so many GPUs."""
    about = {"apiVersion": "kueue.x-k8s.io/v1beta1"}
    own = {"name": cluster_queue(name, namespace)}
    quota = {"name": "nvidia.com/gpu", "nominalQuota": gpus}
    flavors = [{"name": own["name"], "resources": [quota]}]
    groups = [{"coveredResources": [quota["name"]], "flavors": flavors}]
    return [
        {**about, "kind": "ResourceFlavor", "metadata": own, "spec": {}},
        {
            **about,
            "kind": "ClusterQueue",
            "metadata": own,
            "spec": {"namespaceSelector": {}, "resourceGroups": groups},
        },
        {
            **about,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": own["name"]},
        },
    ]


def cluster_queue(name: str, namespace: str) -> str:
    """The name of the ClusterQueue behind a LocalQueue."""
    return f"{namespace}-{name}"


def workloads(namespace: str) -> list[Json]:
    """What Kueue has made of the namespace's groups of pods."""
    return get("workloads.kueue.x-k8s.io", "-n", namespace)


@contextmanager
def running(namespace: str) -> Iterator[None]:
    """Have Kueue look after the plain pods of that namespace, and of no other."""
    places.make_all()
    gotools.ensure({"kueue", "helm"})
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        webhook, health = process.free_ports(2)
        configuration = directory / "configuration.yaml"
        configuration.write_text(json.dumps(_configuration(directory, namespace, webhook, health)))
        made = _rendered(configuration)
        _remove(made)  # what a run that was killed has left
        try:
            _install(made, webhook)
            words: list[str | Path] = [
                gotools.path("kueue"),
                f"--config={configuration}",
                # It would be an API server of its own, for which the cluster has no address here.
                "--feature-gates=VisibilityOnDemand=false",
            ]
            with process.running("kueue", words) as kueue:
                _lay_certificates(directory)
                process.wait_ready("kueue", kueue, health)
                yield
        finally:
            with step("removing Kueue"):
                _remove(made)


def _configuration(directory: Path, namespace: str, webhook: int, health: int) -> Json:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": webhook, "certDir": str(directory)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": SERVICE,
            "webhookSecretName": SECRET,
        },
        "managedJobsNamespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "integrations": {"frameworks": ["pod"]},
    }


def _rendered(configuration: Path) -> list[Json]:
    """What the chart makes for that configuration, as far as it is needed here."""
    chart = gotools.module_dir(MODULE) / "charts" / "kueue"
    text = run(
        [
            tool("helm"),
            *("template", "kueue", chart, "--namespace", NAMESPACE),
            f"--set-file=managerConfig.controllerManagerConfigYaml={configuration}",
        ]
    )
    found = [each for each in yaml.safe_load_all(text) if each and each["kind"] in KINDS]
    found.sort(key=lambda each: each["kind"] in WEBHOOKS)
    return found


def _install(made: list[Json], port: int) -> None:
    """Webhooks last: as long as Kueue does not answer, what they are for is refused."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    about = {"name": SERVICE, "namespace": NAMESPACE}
    ports = [{"name": "webhook", "port": 443, "protocol": "TCP"}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"ports": ports}}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**about, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [network.host_address(layout.CONTROL_PLANE)]}],
        "ports": [{**ports[0], "port": port}],
    }
    apply(namespace)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, endpoints, *made]})
    kubectl("apply", "--server-side", "-f", "-", stdin=text)
    crds = [f"crd/{each['metadata']['name']}" for each in made if each["kind"] == "CustomResourceDefinition"]
    kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)


def _lay_certificates(directory: Path) -> None:
    """What kubelet does with a Secret that a pod mounts. The certificate last: its being there is waited for."""

    def data() -> dict[str, str]:
        found: dict[str, str] = get(f"secret/{SECRET}", "-n", NAMESPACE)[0].get("data") or {}
        return found

    wait_until(
        "Kueue's certificates", lambda: "tls.crt" in data(), timeout=30, seen=lambda: str(list(data()))
    )
    for name, text in sorted(data().items(), reverse=True):
        (directory / name).write_bytes(base64.b64decode(text))


def _remove(made: list[Json]) -> None:
    """Webhooks first: nothing could be changed any more where they do not answer."""
    webhooks = [f"{each['kind']}/{each['metadata']['name']}" for each in made if each["kind"] in WEBHOOKS]
    kubectl("delete", *webhooks, "--ignore-not-found")
    for each in get("pods", "--all-namespaces", "-l", f"{MANAGED}=true"):
        _let_go(f"pod/{each['metadata']['name']}", each)
    wanted = [each["metadata"]["name"] for each in made if each["kind"] == "CustomResourceDefinition"]
    there = {each["metadata"]["name"] for each in get("customresourcedefinitions")}
    for crd in [name for name in wanted if name in there]:
        for each in get(crd, "--all-namespaces"):
            _let_go(f"{crd}/{each['metadata']['name']}", each)
    kubectl("delete", *(f"crd/{name}" for name in wanted), "--ignore-not-found", "--timeout=60s")
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")


def _let_go(what: str, found: Json) -> None:
    """Nobody is there any more who would take the finalizers away."""
    meta = found["metadata"]
    if meta.get("finalizers"):
        words = ["-n", meta["namespace"]] if "namespace" in meta else []
        kubectl(*words, "patch", what, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
