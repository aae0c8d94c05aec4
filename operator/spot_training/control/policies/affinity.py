"""Node affinity: which nodes a volume can be attached to, or a template wants.

The same terms as in Kubernetes (``NodeSelectorTerm``): one of the terms must hold, all requirements of a term must.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from spot_training.control.world import Node, Requirement, Shape, Terms

NAME_FIELD = "metadata.name"
HOSTNAME: Final = "kubernetes.io/hostname"

ZONES: Final = (
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.ebs.csi.aws.com/zone",
    "topology.gke.io/zone",
    "topology.disk.csi.azure.com/zone",
)
"""Labels for a node's zone, of the same value: Kubernetes', and those that drivers of disks have for volumes."""


def read_terms(selector: Mapping[str, Any] | None) -> Terms:
    """The terms of a ``NodeSelector`` as the API server sends it; none where there is none: any node will do.

    A term without a requirement matches nothing, as in Kubernetes.
    """
    made = []
    for term in (selector or {}).get("nodeSelectorTerms") or ():
        said = [
            Requirement(each["key"], each["operator"], tuple(each.get("values") or ()), field)
            for name, field in (("matchExpressions", False), ("matchFields", True))
            for each in term.get(name) or ()
        ]
        made.append(tuple(said))
    return tuple(made)


def attachable_to(volume: Mapping[str, Any]) -> Terms:
    """The terms of the nodes to which a PersistentVolume can be attached."""
    affinity = (volume.get("spec") or {}).get("nodeAffinity") or {}
    return read_terms(affinity.get("required"))


def required_terms(pod: Mapping[str, Any]) -> Terms:
    """The terms that a pod spec requires of its node."""
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    return read_terms(affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))


def matches(terms: Terms, node: Node) -> bool:
    """Whether the node satisfies one of the terms; no terms: every node does."""
    return not terms or any(term and all(_holds(each, _value(each, node)) for each in term) for term in terms)


def _value(said: Requirement, node: Node) -> str | None:
    if said.field:
        return node.name if said.key == NAME_FIELD else None
    return node.labels.get(said.key)


def _holds(said: Requirement, value: str | None) -> bool:
    match said.operator:
        case "In":
            return value in said.values
        case "NotIn":
            return value not in said.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return _compares(said, value)
    return False


def _compares(said: Requirement, value: str | None) -> bool:
    try:
        found, bound = int(value or ""), int(said.values[0])
    except (ValueError, IndexError):
        return False
    return found > bound if said.operator == "Gt" else found < bound


def contradiction(selector: Mapping[str, str], shape: Shape) -> str:
    """Why no node with those labels can ever take a pod of the shape, or nothing where one may.

    What is not among the labels may be anything. The selector's labels are those of all nodes of a pool, also of
    nodes that an autoscaler has yet to make.
    """
    of_pool = _with_zones(selector)
    for key, value in shape.selector:
        if of_pool.get(key, value) != value:
            return f"its nodeSelector asks for {key}: {of_pool[key]}, and the template's for {key}: {value}"
    labels = _with_zones(dict(shape.selector)) | of_pool
    wants = [("the template's nodeAffinity asks for", shape.affinity)]
    wants += [("the job's volumes can be attached only where", terms) for terms in shape.volumes]
    for who, terms in wants:
        if terms and all(_refuted(term, labels) for term in terms):
            keys = sorted({each.key for term in terms for each in term if each.key in labels})
            has = ", ".join(f"{key}: {labels[key]}" for key in keys) or "any labels"
            return f"pods placed there go to nodes with {has}, and {who} {describe(terms)}"
    return ""


def _refuted(term: Sequence[Requirement], labels: Mapping[str, str]) -> bool:
    """Whether no node with those labels, whatever its others, satisfies the term."""
    return not term or any(
        not each.field and each.key in labels and not _holds(each, labels[each.key]) for each in term
    )


def _with_zones(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, and under all its names the zone that they say."""
    zone = next((labels[key] for key in ZONES if key in labels), None)
    return {**(dict.fromkeys(ZONES, zone) if zone is not None else {}), **labels}


def describe(terms: Terms) -> str:
    """The terms in words: ``topology.kubernetes.io/zone In [a, b]``."""
    return " or ".join(" and ".join(_words(each) for each in term) for term in terms)


def _words(said: Requirement) -> str:
    return f"{said.key} {said.operator}" + (f" [{', '.join(said.values)}]" if said.values else "")


def confine(spec: dict[str, Any], node: str, avoid: Sequence[str]) -> None:
    """Let the pod spec run only on ``node`` (empty: any) and on none of ``avoid``, beside what it requires itself."""
    fields = [{"key": NAME_FIELD, "operator": "NotIn", "values": [name]} for name in avoid]
    if node:
        fields.append({"key": NAME_FIELD, "operator": "In", "values": [node]})
    if not fields:
        return
    affinity = dict(spec.get("affinity") or {})
    of_node = dict(affinity.get("nodeAffinity") or {})
    required = dict(of_node.get("requiredDuringSchedulingIgnoredDuringExecution") or {})
    own = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        {**term, "matchFields": [*(term.get("matchFields") or ()), *fields]} for term in own
    ]
    spec["affinity"] = affinity | {
        "nodeAffinity": of_node | {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }


def prefer(spec: dict[str, Any], hosts: Sequence[str]) -> None:
    """Let the scheduler rather put the pod on those nodes, beside what it prefers itself.

    By label and not by name: Karpenter knows no other terms.
    """
    if not hosts:
        return
    affinity = dict(spec.get("affinity") or {})
    of_node = dict(affinity.get("nodeAffinity") or {})
    here = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": list(hosts)}]}
    own = of_node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    of_node["preferredDuringSchedulingIgnoredDuringExecution"] = [
        *own,
        {"weight": 100, "preference": here},
    ]
    spec["affinity"] = affinity | {"nodeAffinity": of_node}


def together(spec: dict[str, Any], labels: Mapping[str, str]) -> None:
    """Let the pod spec run only on the node where pods with those labels are; the first of them is free to choose."""
    affinity = dict(spec.get("affinity") or {})
    of_pods = dict(affinity.get("podAffinity") or {})
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": dict(labels)}}
    required = [*(of_pods.get("requiredDuringSchedulingIgnoredDuringExecution") or ()), term]
    spec["affinity"] = affinity | {
        "podAffinity": of_pods | {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }
