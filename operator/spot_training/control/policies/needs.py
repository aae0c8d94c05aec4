"""What a pod asks of a node, in whole numbers: GPUs and other extended resources, cpu, memory, disk, a pod's place.

Counted as the scheduler counts (Kubernetes: "Resource Management for Pods and Containers", "Init containers"): the
containers' requests together with the sidecars', or the largest init container's if that is more, and the overhead.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from spot_training.api.job import PodSpec

Json = Mapping[str, Any]

CPU: Final = "cpu"
"""In thousandths of a core; everything else is in its own unit: bytes, GPUs, pods."""

_SUFFIXES: Final[Mapping[str, Fraction]] = {
    "": Fraction(1),
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", 1)},
    **{letter: Fraction(1, 1000**power) for power, letter in enumerate("mun", 1)},
}
_QUANTITY: Final = re.compile(
    r"([0-9]{1,18}(?:[.][0-9]{1,9})?)(?:[eE]([+-]?[0-9]{1,2})|([KMGTPE]i|[kMGTPEmun])|)"
)


@lru_cache(maxsize=4096)
def amount(resource: str, quantity: int | str) -> int:
    """A quantity such as ``4``, ``"1k"``, ``"500m"`` or ``"1.5Gi"``, rounded up; cpu in thousandths.

    0 for what is none: what is wrong with it, the API server says to the dry run.
    """
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        return 0
    value = Fraction(found[1]) * (Fraction(10) ** int(found[2]) if found[2] else _SUFFIXES[found[3] or ""])
    return -int(-(value * 1000 if resource == CPU else value) // 1)


def capacity(allocatable: Json) -> dict[str, int]:
    """What a node has for pods, by resource."""
    return {key: amount(key, value) for key, value in allocatable.items()}


def pod_needs(spec: Json) -> dict[str, int]:
    """What a pod with that spec takes of its node, by resource; those it asks nothing of are left out."""
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        _add(total, _wanted(container))
    before: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        wanted = _wanted(container)
        if container.get("restartPolicy") == "Always":
            _add(before, wanted)
            _raise(peak, before)
        else:
            _add(wanted, before)
            _raise(peak, wanted)
    _add(total, before)
    _raise(total, peak)
    # Said of the pod as a whole it counts instead (Kubernetes 1.34: pod-level resources).
    total |= {key: value for key, value in _wanted(spec).items() if "/" not in key}
    _add(total, {key: amount(key, value) for key, value in (spec.get("overhead") or {}).items()})
    return {key: value for key, value in total.items() if value}


def gpus_per_pod(pod: PodSpec, resource: str) -> int:
    """GPUs that a pod of the template asks for."""
    return pod_needs(pod.to_json()).get(resource, 0)


def _wanted(container: Json) -> dict[str, int]:
    resources = container.get("resources") or {}
    # A limit without a request is the request.
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {key: amount(key, value) for key, value in wanted.items()}


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0) + value


def _raise(total: dict[str, int], least: Mapping[str, int]) -> None:
    for key, value in least.items():
        total[key] = max(total.get(key, 0), value)
