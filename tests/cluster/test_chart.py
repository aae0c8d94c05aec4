"""The chart and the manifests made from it: right, refusing what is wrong, and with no more rights than needed."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import yaml

from spot_training.node.message import FACTS, parse_body
from tests.cluster.objects import Json, apply, kubectl
from tests.cluster.rendering import helm, workloads
from tests.kit import install, jobs, layout, manifests
from tests.kit.kube import get
from tests.kit.shell import CommandError, wait_until

SAMPLES: Final = install.ROOT / "manifests" / "samples"
SOCKET: Final = "/run/eci-guest-agent.sock"
OPERATOR: Final = f"system:serviceaccount:{install.NAMESPACE}:{install.RELEASE}"
AGENT: Final = f"{OPERATOR}-agent"


def test_the_chart_has_nothing_to_complain_about() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(install.CHART))


def test_the_manifest_is_the_chart_with_its_default_values() -> None:
    text = (install.ROOT / "manifests" / "install.yaml").read_text()
    assert text == manifests.rendered(), "run `make manifests`"


@pytest.mark.parametrize(
    ("setting", "field", "complaint"),
    [
        ("agent.pollSeconds=0", "/agent/pollSeconds", "minimum: got 0, want 0.05"),
        ("agent.pollseconds=1", "/agent", "additional properties 'pollseconds' not allowed"),
        ("agent.metricsPort=70000", "/agent/metricsPort", "maximum: got 70,000, want 65,535"),
        ("operator.priceConfigMap=Prices", "/operator/priceConfigMap", "does not match pattern"),
        ("operator.headroom.image=a b", "/operator/headroom/image", "does not match pattern"),
        ("operator.costLabels=team", "/operator/costLabels", "got string, want array"),
        ("operator.costLabels={te am}", "/operator/costLabels/0", "does not match pattern"),
        ("operator.metricsPort=0", "/operator/metricsPort", "minimum: got 0, want 1"),
        ("agent.drain=maybe", "/agent/drain", "got string, want boolean"),
        ("agent.providers.acme.enabled=true", "/agent/providers", "additional properties 'acme' not allowed"),
        (
            "agent.providers.aws.socket=/s",
            "/agent/providers/aws",
            "additional properties 'socket' not allowed",
        ),
        ("agent.providers.gcp.hostNetwork=1", "/agent/providers/gcp/hostNetwork", "want boolean"),
        ("agent.providers.aws.endpoint=http://h/latest", "/agent/providers/aws/endpoint", "does not match"),
        (
            "agent.providers.eci.endpoint=http://h",
            "/agent/providers/eci",
            "additional properties 'endpoint' not allowed",
        ),
        ("agent.onRebalance=panic", "/agent/onRebalance", "value must be one of 'taint', 'drain', 'ignore'"),
        ("agent.onMaintenance=", "/agent/onMaintenance", "value must be one of 'taint'"),
        ("agent.waitForVolumes=1", "/agent/waitForVolumes", "want boolean"),
        ("agent.webhook.url=https://x", "/agent/webhook", "additional properties 'url' not allowed"),
        ("agent.webhook.body.text=$host", "/agent/webhook/body/text", "'$host' does not match pattern"),
        ("agent.webhook.body.a[0].b=$", "/agent/webhook/body/a/0/b", "'$' does not match pattern"),
        ("agent.hook.url=10.0.0.1/x", "/agent/hook/url", "does not match pattern"),
        ("agent.hook.command=flush", "/agent/hook/command", "got string, want array"),
        ("agent.hook.timeoutSeconds=0", "/agent/hook/timeoutSeconds", "minimum: got 0, want 1"),
        ("agent.providers.azure.approve=1", "/agent/providers/azure/approve", "want boolean"),
        ("agent.providers.azure.endpoint=http://h/x", "/agent/providers/azure/endpoint", "does not match"),
        ("agent.providers.aws.approve=true", "/agent/providers/aws", "'approve' not allowed"),
        ("agent.providers.eci.socket=run/eci.sock", "/agent/providers/eci/socket", "does not match pattern"),
        ("operator.replicas=0", "/operator/replicas", "minimum: got 0, want 1"),
        ("operator.replicas=two", "/operator/replicas", "got string, want integer"),
        ("operator.logLevel=loud", "/operator/logLevel", "value must be one of 'debug', 'info'"),
        ("image.repository=", "/image/repository", "minLength: got 0, want 1"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy", "value must be one of 'Always'"),
        ("crds.keep=1", "/crds/keep", "want boolean"),
        ("replicas=2", "''", "additional properties 'replicas' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(setting: str, field: str, complaint: str) -> None:
    with pytest.raises(CommandError) as caught:
        workloads("--set", setting)
    assert field in caught.value.output
    assert complaint in caught.value.output


def test_the_manifest_can_be_applied_as_its_first_line_says() -> None:
    path = install.ROOT / "manifests" / "install.yaml"
    assert "kubectl apply --server-side -f" in path.read_text().splitlines()[0]
    # Helm owns these objects here; what is asked is whether the API server takes them.
    code, said, complaint = kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", str(path)
    )
    assert code == 0, complaint
    documents = [each for each in yaml.safe_load_all(path.read_text()) if each]
    assert len(said.splitlines()) == len(documents)


def sample_jobs() -> list[Json]:
    documents = [
        each for path in sorted(SAMPLES.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
    ]
    return [each for each in documents if each["kind"] == "SpotTrainingJob"]


@pytest.fixture
def without_pods(namespace: str) -> Iterator[str]:
    """The namespace while it has room for no pod: what is sampled here is to run on nobody's nodes."""
    quota = {"name": "no-pods", "namespace": namespace}
    made = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": quota,
        "spec": {"hard": {"count/pods": "0"}},
    }
    code, _, complaint = apply(made)
    assert code == 0, complaint
    wait_until(
        "the quota in force",
        lambda: bool(get("resourcequota/no-pods", "-n", namespace)[0].get("status", {}).get("hard")),
        timeout=30,
        seen=lambda: kubectl("-n", namespace, "get", "resourcequota", "-o", "yaml")[1],
    )
    yield namespace
    kubectl("-n", namespace, "delete", "stj", "--all", "--wait=true")
    kubectl("-n", namespace, "delete", "resourcequota", "no-pods")


def test_the_samples_are_taken_and_their_pods_would_be(without_pods: str) -> None:
    for path in sorted(SAMPLES.glob("*.yaml")):
        where = ["--dry-run=server"] if path.name == "pools.yaml" else ["-n", without_pods]
        code, _, complaint = kubectl("apply", *where, "-f", str(path))
        assert (code, complaint) == (0, ""), path.name
    names = [each["metadata"]["name"] for each in sample_jobs()]
    assert len(names) >= 3

    def seen() -> str:
        return kubectl("-n", without_pods, "get", "stj", "-o", "yaml")[1]

    def verdicts() -> list[Json]:
        states = [get(f"stj/{name}", "-n", without_pods)[0].get("status") or {} for name in names]
        return [jobs.condition(state, "TemplateInvalid") for state in states]

    wait_until("a verdict on each sample", lambda: all(verdicts()), timeout=30, seen=seen)
    for verdict in verdicts():
        # Quotas are asked last: a pod that only a quota refuses is a right one.
        assert verdict["reason"] == "PodsRefused", verdict
        assert "exceeded quota: no-pods" in verdict["message"]


def test_the_samples_name_pools_that_the_samples_make() -> None:
    pools = {each["metadata"]["name"] for each in yaml.safe_load_all((SAMPLES / "pools.yaml").read_text())}
    for each in sample_jobs():
        assert set(each["spec"].get("pools", [])) <= pools, each["metadata"]["name"]


RESTRICTIONS: Final[dict[str, Callable[[Json, Json], bool]]] = {
    "does not run as root": lambda pod, _: (
        pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    ),
    "cannot write to its own root": lambda _, it: it["securityContext"]["readOnlyRootFilesystem"] is True,
    "has no capability": lambda _, it: it["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "cannot gain rights": lambda _, it: (
        it["securityContext"]["allowPrivilegeEscalation"] is False
        and not it["securityContext"].get("privileged")
    ),
    "is confined by seccomp": lambda pod, _: (
        pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    ),
    "is in no namespace of the host": lambda pod, it: (
        not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        and not any(port.get("hostPort") for port in it.get("ports", []))
    ),
    "has a memory limit": lambda _, it: "memory" in it["resources"]["limits"],
}


@pytest.mark.parametrize("component", ["agent", "operator"])
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_each_container(component: str, restriction: str) -> None:
    pod = workloads()[component]["spec"]
    everything = pod["containers"] + pod.get("initContainers", [])
    assert everything
    for container in everything:
        assert RESTRICTIONS[restriction](pod, container), json.dumps(pod, indent=1)


def test_the_agent_sees_of_its_node_one_socket_and_the_operator_nothing() -> None:
    made = workloads()
    assert [each["hostPath"] for each in made["agent"]["spec"]["volumes"]] == [
        {"path": SOCKET, "type": "Socket"}
    ]
    assert "volumes" not in made["operator"]["spec"]


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure", "alibaba", "tencent"])
def test_a_clouds_agent_mounts_nothing_and_only_googles_shares_the_hosts_network(provider: str) -> None:
    others = {"eci", "aws", "gcp", "azure", "alibaba", "tencent"} - {provider}
    settings = [
        f"agent.providers.{provider}.enabled=true",
        *(f"agent.providers.{it}.enabled=false" for it in others),
    ]
    pod = workloads("--set", ",".join(settings))["agent"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "SPOT_PROVIDER", "value": provider} in container["env"]
    assert "SPOT_METADATA_ENDPOINT" not in {each["name"] for each in container["env"]}
    assert "volumes" not in pod and "volumeMounts" not in container
    assert pod.get("hostNetwork", False) is (provider == "gcp")
    assert pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]


def test_another_endpoint_is_told_to_that_providers_agent() -> None:
    there = "http://[fd00:ec2::254]:80"
    aws = "agent.providers.aws"
    settings = f"agent.providers.eci.enabled=false,{aws}.enabled=true,{aws}.endpoint={there}"
    (container,) = workloads("--set", settings)["agent"]["spec"]["containers"]
    assert {"name": "SPOT_METADATA_ENDPOINT", "value": there} in container["env"]


def agent_environment(**agent: Any) -> dict[str, Any]:
    """The agent's variables where these values of it are set: a value, or where it comes from."""
    pod = workloads("--set-json", f"agent={json.dumps(agent)}")["agent"]["spec"]
    (container,) = pod["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_the_webhooks_url_comes_from_a_secret_that_may_be_missing() -> None:
    assert not [name for name in agent_environment() if "WEBHOOK" in name or "HOOK" in name]
    made = agent_environment(webhook={"secretName": "slack", "secretKey": "address"})
    reference = {"name": "slack", "key": "address", "optional": True}
    assert made["SPOT_WEBHOOK"] == "true"
    assert made["SPOT_WEBHOOK_URL"] == {"secretKeyRef": reference}
    assert "SPOT_WEBHOOK_BODY" not in made


def test_the_webhooks_body_is_what_the_agent_takes_once_kubelet_has_expanded_it() -> None:
    body = {"text": "<$text> costs $$5", "blocks": [{"a": "${node}", "n": 5, "t": True, "z": None}]}
    made = agent_environment(webhook={"secretName": "slack", "body": body})
    # kubelet makes $$ into $, and a variable of $(NAME) alone.
    assert parse_body(made["SPOT_WEBHOOK_BODY"].replace("$$", "$")) == body


def test_the_schema_knows_the_facts_that_the_agent_knows() -> None:
    schema = json.loads((install.CHART / "values.schema.json").read_text())
    assert f"({'|'.join(FACTS)})" in schema["definitions"]["filled"]["pattern"]


def test_hooks_reach_the_agent_as_they_are_given() -> None:
    hook = {"command": ["/bin/flush", 'a "b"'], "url": "http://$(HOST_IP):9000/notice", "timeoutSeconds": 30}
    made = agent_environment(hook=hook)
    assert made["HOST_IP"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert json.loads(made["SPOT_HOOK_COMMAND"]) == hook["command"]
    assert (made["SPOT_HOOK_URL"], made["SPOT_HOOK_TIMEOUT_SECONDS"]) == (hook["url"], "30")
    only = agent_environment(hook={"url": hook["url"]})
    assert json.loads(only["SPOT_HOOK_COMMAND"]) == []


def test_only_azures_agent_is_told_whether_to_approve() -> None:
    providers = {"eci": {"enabled": False}, "azure": {"enabled": True}}
    assert agent_environment(providers=providers)["SPOT_AZURE_APPROVE"] == "false"
    providers["azure"]["approve"] = True
    assert agent_environment(providers=providers)["SPOT_AZURE_APPROVE"] == "true"
    assert "SPOT_AZURE_APPROVE" not in agent_environment()


@pytest.mark.parametrize(
    ("component", "violation"),
    [("operator", ""), ("agent", 'volume "guest-agent" uses restricted volume type "hostPath"')],
)
def test_the_api_servers_own_strictest_profile(component: str, violation: str, namespace: str) -> None:
    spec: dict[str, Any] = {**workloads()[component]["spec"], "serviceAccountName": "default"}
    metadata = {"name": component, "namespace": namespace}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    profile = "pod-security.kubernetes.io/enforce"
    kubectl("label", "namespace", namespace, f"{profile}=restricted")
    code, _, complaint = apply(made, "--dry-run=server")
    kubectl("label", "namespace", namespace, f"{profile}-")
    if not violation:
        assert code == 0, complaint
        return
    assert code == 1
    # One volume is all that there is to complain about.
    assert complaint.strip().endswith(
        f'violates PodSecurity "restricted:latest": restricted volume types ({violation})'
    ), complaint


NOBODY: Final = [
    ("get", "secrets"),
    ("list", "secrets"),
    ("get", "configmaps"),
    ("create", "serviceaccounts/token"),
    ("create", "pods/exec"),
    ("get", "pods/log"),
    ("patch", "pods"),
    ("update", "nodes"),
    ("delete", "nodes"),
    ("create", "nodes"),
    ("delete", "persistentvolumeclaims"),
    ("delete", "namespaces"),
    ("delete", "services"),
    ("patch", "deployments.apps"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
    ("escalate", "clusterroles.rbac.authorization.k8s.io"),
    ("impersonate", "users"),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io"),
    ("update", "spottrainingjobs.spot.training"),
    ("patch", "spottrainingjobs.spot.training"),
    ("create", "spottrainingjobs.spot.training"),
    ("patch", "spotpools.spot.training"),
    ("update", "leases.coordination.k8s.io"),
    ("*", "*"),
]
RIGHTS: Final = {
    OPERATOR: [
        ("yes", "create", "pods"),
        ("yes", "delete", "pods"),
        ("yes", "list", "nodes"),
        ("yes", "patch", "spottrainingjobs.spot.training/status"),
        ("yes", "get", "persistentvolumes"),
        ("yes", "list", "events"),
        ("yes", "list", "persistentvolumes"),
        ("no", "patch", "persistentvolumes"),
        ("no", "patch", "nodes"),
        ("no", "patch", "nodes/status"),
        ("no", "create", "pods/eviction"),
        ("no", "get", "leases.coordination.k8s.io"),
        *(("no", *each) for each in NOBODY),
    ],
    AGENT: [
        ("yes", "patch", "nodes"),
        ("yes", "delete", "pods"),
        ("yes", "create", "pods/eviction"),
        ("no", "create", "pods"),
        ("no", "get", "pods"),
        ("no", "list", "nodes"),
        ("no", "list", "spottrainingjobs.spot.training"),
        ("no", "patch", "spottrainingjobs.spot.training/status"),
        ("no", "list", "persistentvolumeclaims"),
        ("no", "get", "persistentvolumes"),
        ("no", "list", "volumeattachments.storage.k8s.io"),
        *(("no", *each) for each in NOBODY),
    ],
}


@pytest.mark.parametrize("who", RIGHTS, ids=lambda who: who.rsplit(":", 1)[1])
def test_nobody_may_do_what_he_need_not(who: str) -> None:
    wrong = []
    for expected, verb, resource in RIGHTS[who]:
        resource, _, sub = resource.partition("/")
        words = [*([f"--subresource={sub}"] if sub else []), verb, resource]
        _, said, complaint = kubectl("auth", "can-i", "-n", "default", f"--as={who}", *words)
        if said.strip() != expected:
            wrong.append(f"{verb} {resource}/{sub}: {said.strip()}, not {expected} {complaint.strip()}")
    assert not wrong, wrong


def test_the_operator_may_get_the_price_file_and_no_other_config_map() -> None:
    text = helm("template", install.RELEASE, str(install.CHART), "--set", "operator.priceConfigMap=prices")
    made = [each for each in yaml.safe_load_all(text[text.index("---") :]) if each]
    (role,) = [
        each for each in made if each["kind"] == "Role" and each["metadata"]["name"].endswith("-prices")
    ]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["prices"], "verbs": ["get"]}
    ]
    pod = workloads("--set", "operator.priceConfigMap=prices", "--set", "operator.costLabels={team,a.b/c}")
    env = {each["name"]: each.get("value") for each in pod["operator"]["spec"]["containers"][0]["env"]}
    assert env["SPOT_PRICE_FILE"] == f"{install.NAMESPACE}/prices"
    assert env["SPOT_COST_LABELS"] == "team,a.b/c"


def test_the_pods_that_keep_nodes_warm_have_an_image_and_a_negative_priority() -> None:
    text = helm("template", install.RELEASE, str(install.CHART))
    made = [each for each in yaml.safe_load_all(text[text.index("---") :]) if each]
    (given,) = [each for each in made if each["kind"] == "PriorityClass"]
    # Cluster Autoscaler brings no nodes for less.
    assert -10 <= given["value"] < 0
    assert given["preemptionPolicy"] == "Never"
    pod = workloads("--set", "imagePullSecrets[0].name=one", "--set", "imagePullSecrets[1].name=two")
    container = pod["operator"]["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert env["SPOT_HEADROOM_IMAGE"] == container["image"]
    assert env["SPOT_HEADROOM_PRIORITY_CLASS"] == given["metadata"]["name"]
    assert env["SPOT_HEADROOM_PULL_SECRETS"] == "one,two"
    other = workloads("--set", "operator.headroom.image=pause:1")["operator"]["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in other["env"]}
    assert env["SPOT_HEADROOM_IMAGE"] == "pause:1"


def test_the_operator_reads_the_kubelets_leases_and_no_others() -> None:
    for namespace, expected in (("kube-node-lease", "yes"), ("kube-system", "no")):
        words = ["auth", "can-i", "-n", namespace, f"--as={OPERATOR}", "get", "leases.coordination.k8s.io"]
        assert kubectl(*words)[1].strip() == expected, namespace


def test_the_operator_has_one_lease_of_its_own() -> None:
    own = f"leases.coordination.k8s.io/{install.RELEASE}"
    for verb, what, namespace, expected in (
        ("create", "leases.coordination.k8s.io", install.NAMESPACE, "yes"),
        ("update", own, install.NAMESPACE, "yes"),
        ("get", own, install.NAMESPACE, "yes"),
        ("update", "leases.coordination.k8s.io/another", install.NAMESPACE, "no"),
        ("delete", own, install.NAMESPACE, "no"),
        ("list", "leases.coordination.k8s.io", install.NAMESPACE, "no"),
        ("create", "leases.coordination.k8s.io", "default", "no"),
        ("update", own, "default", "no"),
        ("update", own, "kube-system", "no"),
    ):
        words = ["auth", "can-i", "-n", namespace, f"--as={OPERATOR}", verb, what]
        assert kubectl(*words)[1].strip() == expected, words


def rendered(kind: str, *words: str) -> list[Json]:
    text = helm("template", install.RELEASE, str(install.CHART), "--namespace", install.NAMESPACE, *words)
    return [each for each in yaml.safe_load_all(text[text.index("---") :]) if each and each["kind"] == kind]


def test_replicas_are_apart_and_are_not_drained_together() -> None:
    (made,) = rendered("Deployment")
    pod = made["spec"]["template"]["spec"]
    labels = made["spec"]["selector"]["matchLabels"]
    assert made["spec"]["replicas"] == 2
    assert [(it["topologyKey"], it["whenUnsatisfiable"]) for it in pod["topologySpreadConstraints"]] == [
        ("kubernetes.io/hostname", "ScheduleAnyway"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]
    assert all(it["labelSelector"]["matchLabels"] == labels for it in pod["topologySpreadConstraints"])
    (budget,) = rendered("PodDisruptionBudget")
    assert (budget["spec"]["selector"]["matchLabels"], budget["spec"]["maxUnavailable"]) == (labels, 1)
    # The one that is alone can be drained: a budget would hold up its node for ever.
    (alone,) = rendered("Deployment", "--set", "operator.replicas=1")
    assert alone["spec"]["replicas"] == 1
    assert "topologySpreadConstraints" not in alone["spec"]["template"]["spec"]
    assert rendered("PodDisruptionBudget", "--set", "operator.replicas=1") == []


@pytest.mark.spot_nodes
def test_the_agent_is_on_every_spot_node_and_on_no_other_and_the_operator_on_none() -> None:
    spot = {worker.name for worker in layout.WORKERS if worker.is_spot}

    def nodes_of(component: str) -> set[str]:
        selector = f"app.kubernetes.io/instance={install.RELEASE},app.kubernetes.io/component={component}"
        pods = get("pods", "-n", install.NAMESPACE, "-l", selector)
        # Other tests' simulated nodes, of which some are spot, come and go.
        return {pod["spec"].get("nodeName", "") for pod in pods} & {*layout.NODES}

    wait_until(
        "an agent on each spot node, and an operator on none",
        lambda: nodes_of("agent") == spot and bool(nodes_of("operator")) and not nodes_of("operator") & spot,
        timeout=60,
        seen=lambda: kubectl("-n", install.NAMESPACE, "get", "pods", "-o", "wide")[1],
    )
