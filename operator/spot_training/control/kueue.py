"""Kueue: how an attempt's pods join a queue as a group of plain pods. Pure.

The contract is Kueue's own ("Run Plain Pods", and its KEP 976): pods that bear the label of a queue get a scheduling
gate from Kueue's webhook; a group is admitted when as many pods are there as its annotation says, and then loses the
gates. Each attempt is a group of its own, which is over when its pods are: nobody replaces a pod in it.
"""

from typing import Any, Final

from spot_training.api.status import Current
from spot_training.control.world import Job

QUEUE: Final = "kueue.x-k8s.io/queue-name"
PRIORITY: Final = "kueue.x-k8s.io/priority-class"
GROUP: Final = "kueue.x-k8s.io/pod-group-name"
TOTAL: Final = "kueue.x-k8s.io/pod-group-total-count"
RETRIABLE: Final = "kueue.x-k8s.io/retriable-in-group"

TERMINATION_TARGET: Final = "TerminationTarget"
"""The pod condition that Kueue sets before it deletes the pods of a workload that it evicts."""


def group(job: Job, attempt: int) -> str:
    """The name of the attempt's group of pods, and of the Workload that Kueue makes of it.

    Unique among all jobs that ever bore the name: Kueue would take pods of the same group for one workload.
    """
    return f"{job.name[:40]}-{job.uid[:8]}-{attempt}"


def join(metadata: dict[str, Any], job: Job, opened: Current) -> None:
    """Put the pod into the queue that the attempt was opened for, as one of its group."""
    if not opened.queue:
        return
    labels = {QUEUE: opened.queue, GROUP: group(job, opened.attempt)}
    if job.priority_class:
        labels[PRIORITY] = job.priority_class
    metadata["labels"] = metadata["labels"] | labels
    metadata["annotations"] = metadata["annotations"] | {TOTAL: str(job.replicas), RETRIABLE: "false"}
