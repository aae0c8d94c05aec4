"""The chart as Helm renders it."""

import yaml

from tests.cluster.objects import Json
from tests.kit import install
from tests.kit.kube import tool
from tests.kit.shell import run


def helm(*words: str) -> str:
    """What Helm prints."""
    return run([tool("helm"), *words])


def workloads(*words: str) -> dict[str, Json]:
    """The pod templates that the chart renders, by their component."""
    text = helm("template", install.RELEASE, str(install.CHART), "--namespace", install.NAMESPACE, *words)
    templates = [
        each["spec"]["template"]
        for each in yaml.safe_load_all(text[text.index("---") :])
        if each and each["kind"] in ("Deployment", "DaemonSet", "StatefulSet", "Job")
    ]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in templates}
