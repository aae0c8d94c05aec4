"""Node affinity: which nodes a volume can be attached to, or a template wants.

The same terms as in Kubernetes (``NodeSelectorTerm``): one of the terms must hold, all requirements of a term must.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spot_training.control.world import Node, Requirement, Terms

NAME_FIELD = "metadata.name"


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


def required_terms(pod: Mapping[str, Any]) -> Terms:
    """The terms that a pod spec requires of its node."""
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    return read_terms(affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))


def matches(terms: Terms, node: Node) -> bool:
    """Whether the node satisfies one of the terms; no terms: every node does."""
    return not terms or any(term and all(_holds(each, node) for each in term) for term in terms)


def _holds(said: Requirement, node: Node) -> bool:
    value = (node.name if said.key == NAME_FIELD else None) if said.field else node.labels.get(said.key)
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


def together(spec: dict[str, Any], labels: Mapping[str, str]) -> None:
    """Let the pod spec run only on the node where pods with those labels are; the first of them is free to choose."""
    affinity = dict(spec.get("affinity") or {})
    of_pods = dict(affinity.get("podAffinity") or {})
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": dict(labels)}}
    required = [*(of_pods.get("requiredDuringSchedulingIgnoredDuringExecution") or ()), term]
    spec["affinity"] = affinity | {
        "podAffinity": of_pods | {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }
