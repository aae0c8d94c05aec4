"""What jobs cost, for Prometheus: by pool, by namespace, and by labels of the jobs that the installation chooses.

Values of labels are the users': so many combinations are kept apart, what comes after them is ``Other``.
"""

import re
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from spot_training.control.observations import OTHER, Charge
from spot_training.control.world import Job

MAX_SERIES: Final = 1000


def metric_label(key: str) -> str:
    """The name of a metric's label for a label of a job: ``label_`` and the key, as kube-state-metrics writes it."""
    return "label_" + re.sub("[^a-zA-Z0-9_]", "_", key)


class Charges:
    """Counters of hours, money and lost seconds.

    Raises ``ValueError`` where two of the keys have the same name as labels of a metric.
    """

    def __init__(
        self, registry: CollectorRegistry, keys: Sequence[str] = (), limit: int = MAX_SERIES
    ) -> None:
        self._keys = tuple(keys)
        self._limit = limit
        self._seen: set[tuple[str, ...]] = set()
        labels = ["pool", "capacity_type", "namespace", *(metric_label(key) for key in self._keys)]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"cost labels {', '.join(self._keys)}: two of them are one as labels of a metric"
            )
        self._hours = Counter(
            "spot_operator_node_hours",
            "Node hours that jobs used, a part of a node's GPUs being that part of an hour",
            labels,
            registry=registry,
        )
        self._spent = Counter("spot_operator_spent", "What they cost", labels, registry=registry)
        self._otherwise = Counter(
            "spot_operator_on_demand_equivalent",
            "What they would have cost on demand",
            labels,
            registry=registry,
        )
        self._lost = Counter(
            "spot_operator_lost_seconds",
            "Training that was not saved when an attempt ended",
            labels,
            registry=registry,
        )

    def add(self, job: Job, found: Charge) -> None:
        """Count what a write charges."""
        own = (job.namespace, *(job.labels.get(key, "") for key in self._keys))
        if own not in self._seen:
            if len(self._seen) < self._limit:
                self._seen.add(own)
            else:
                own = (OTHER,) * len(own)
        labels = (found.pool, found.capacity_type, *own)
        self._hours.labels(*labels).inc(found.hours)
        self._spent.labels(*labels).inc(found.spent)
        self._otherwise.labels(*labels).inc(found.on_demand_equivalent)
        self._lost.labels(*labels).inc(found.lost_seconds)
