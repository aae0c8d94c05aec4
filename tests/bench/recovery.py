"""From a node's mark to its pods' replacements, on real nodes, beside batch/v1 Jobs after the same drain."""

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from spot_training.api import names
from spot_training.api.times import parse_time
from tests.bench.report import Report, nearest_rank
from tests.kit import jobs, layout
from tests.kit.guest_agent import control
from tests.kit.kube import apply, get, kubectl, tool
from tests.kit.places import KUBECONFIG
from tests.kit.shell import say, step, wait_until

Json = dict[str, Any]

POOL: Final = "bench-real"
LABEL: Final = "spot.training/bench-real"
NAME: Final = "bench"
IMAGE: Final = "spot-training-example:dev"
# Exits at once when told, as a shell does that waits for its child.
COMMAND: Final = ["sh", "-c", "trap 'exit 143' TERM; sleep 3600 & wait"]
SETTLED_SECONDS: Final = 3.0
"""So long they have run before the node is taken: kubelet, still busy with a pod's start, ends it a second later."""
JOB_TIMEOUT: Final = 100.0
"""A batch/v1 Job of eight pods takes ten minutes: each pod feeds its back-off. It is not waited for."""

MOST_LATE: Final = 3
"""After so many trials of which none came to its end, no more are tried."""


STAGES: Final = ("told", "ended", "created", "bound", "running")
"""What happens to the pods one after the other: the old are told to end and have ended, the new follow."""


@dataclass
class Watched:
    """When pods were first seen in each stage: by stage and UID, by this machine's clock."""

    at: dict[str, dict[str, float]] = field(default_factory=lambda: {stage: {} for stage in STAGES})

    @property
    def running(self) -> dict[str, float]:
        return self.at["running"]

    def last(self, stage: str, expected: int, before: set[str], *, old: bool) -> float:
        """When the last of so many pods came to the stage, of those that were there ``before`` or of the others."""
        times = sorted(at for uid, at in self.at[stage].items() if (uid in before) is old)
        return times[min(expected, len(times)) - 1] if times else 0.0


@contextmanager
def watched(selector: str) -> Iterator[Watched]:
    """Follow the pods of a selector with a watch of their own."""
    seen = Watched()
    argv = [
        *(str(tool("kubectl")), "--kubeconfig", str(KUBECONFIG), "get", "pods", "-l", selector),
        *("--watch", "--output-watch-events", "-o", "json"),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    stream = process.stdout
    if stream is None:
        raise RuntimeError("kubectl has no output")

    def follow() -> None:
        decoder, text = json.JSONDecoder(), ""
        for line in stream:
            text = (text + line.decode()).lstrip()
            try:
                event, end = decoder.raw_decode(text)
            except ValueError:
                continue
            text = text[end:]
            _note(seen, event["type"], event["object"], time.time())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        process.terminate()
        process.wait(timeout=10)
        thread.join(timeout=10)


def _note(seen: Watched, type_: str, pod: Json, now: float) -> None:
    states = [each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses") or ()]
    reached = {
        "told": type_ == "DELETED" or "deletionTimestamp" in pod["metadata"],
        "ended": type_ == "DELETED" or (bool(states) and all("terminated" in each for each in states)),
        "created": True,
        "bound": bool(pod["spec"].get("nodeName")),
        "running": any("running" in each for each in states),
    }
    for stage in STAGES:
        if reached[stage]:
            seen.at[stage].setdefault(pod["metadata"]["uid"], now)


@dataclass(frozen=True)
class Trial:
    """Seconds from the mark on the node until the last pod came to each stage."""

    stages: Mapping[str, float]

    @property
    def created(self) -> float:
        """Until all replacements were created."""
        return self.stages["created"]

    @property
    def running(self) -> float:
        """Until all of them ran."""
        return self.stages["running"]


def measure(report: Report, trials: int) -> None:
    """One pod and gangs of 4 and 8; each beside batch/v1 Jobs where those recover at all in time."""
    spot = [worker.name for worker in layout.WORKERS if worker.capacity_type == "spot"]
    for worker in spot:
        kubectl("label", "node", worker, f"{LABEL}=true", "--overwrite")
    tolerations = [{"key": layout.CAPACITY_TYPE, "operator": "Exists"}]
    apply(
        {
            "apiVersion": "spot.training/v1alpha1",
            "kind": "SpotPool",
            "metadata": {"name": POOL},
            "spec": {"nodeSelector": {LABEL: "true"}, "noticeSeconds": 60, "tolerations": tolerations},
        }
    )
    try:
        ours: dict[int, list[Trial]] = {}
        for size in (1, 4, 8):
            ours[size] = _trials(f"a SpotTrainingJob of {size}", partial(_spot, size), trials)
            prefix = f"gang{size}" if size > 1 else "one_pod"
            _tell(
                report, prefix, ours[size], "<= 0.6" if size == 4 else None, "<= 1.5" if size == 4 else None
            )
        theirs = _trials("a batch/v1 Job of 1", partial(_batch, 1), max(3, trials // 4))
        _tell(report, "job_one_pod", theirs, None, None)
        for size in (4, 8):
            gang = _trials(f"a batch/v1 Job of {size}", partial(_batch, size), 1)
            if gang:
                _tell(report, f"job_gang{size}", gang, None, None)
        created = sorted(each.created for each in ours[1])
        baseline = sorted(each.created for each in theirs)
        if created and baseline:
            median, other = created[len(created) // 2], baseline[len(baseline) // 2]
            report.value("replacement_p50_ratio_to_job", median / other, "", "<= 0.2")
    finally:
        kubectl("delete", "spotpool", POOL, "--ignore-not-found")
        for worker in spot:
            kubectl("label", "node", worker, f"{LABEL}-")


def _tell(report: Report, prefix: str, found: list[Trial], created: str | None, running: str | None) -> None:
    for what, goal in (("created", created), ("running", running)):
        samples = [getattr(each, what) for each in found]
        report.trials(f"{prefix}_{what}_median_seconds", samples, "s", goal)
        report.value(f"{prefix}_{what}_p95_seconds", nearest_rank(samples, 95), "s")
    medians = {stage: statistics.median(each.stages[stage] for each in found) for stage in STAGES}
    steps = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in medians.items())
    report.note(f"{prefix}: from the mark until the last pod was {steps} (medians)")
    report.value(f"{prefix}_late_trials", late(found), "trials", f"0 longer than {JOB_TIMEOUT:.0f} s")


def _trials(label: str, one: Callable[[], Trial | None], number: int) -> list[Trial]:
    """So many trials. One that takes longer than it is waited for counts as that long, unless none was quicker."""
    found = []
    with step(f"{number} recoveries of {label}"):
        for done in range(number):
            trial = one()
            if trial is None:
                say(f"    {label}: no recovery within {JOB_TIMEOUT:.0f} s, in trial {done + 1}")
                trial = Trial(dict.fromkeys(STAGES, JOB_TIMEOUT))
            found.append(trial)
            if done + 1 == MOST_LATE and late(found) == MOST_LATE:
                break
    return found if late(found) < len(found) else []


def late(found: list[Trial]) -> int:
    """How many of the trials were not waited for to their end."""
    return sum(1 for each in found if each.running >= JOB_TIMEOUT)


def _spot(size: int) -> Trial | None:
    jobs.fresh_claim(NAME)
    apply(
        {
            "apiVersion": "spot.training/v1alpha1",
            "kind": "SpotTrainingJob",
            "metadata": {"name": NAME, "namespace": "default"},
            "spec": {
                "replicas": size,
                "pools": [POOL],
                "template": {"spec": _pod_spec()},
                "checkpoint": {"mountPath": "/mnt/checkpoint", "claimName": NAME},
            },
        }
    )
    try:
        return _reclaimed(f"{names.LABEL_JOB}={NAME}", size)
    finally:
        jobs.remove(NAME)


def _batch(size: int) -> Trial | None:
    spec = _pod_spec() | {
        "restartPolicy": "Never",
        "nodeSelector": {LABEL: "true"},
        "tolerations": [{"key": layout.CAPACITY_TYPE, "operator": "Exists"}],
    }
    pattern = [{"type": "DisruptionTarget", "status": "True"}]
    apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": NAME, "namespace": "default"},
            "spec": {
                "completionMode": "Indexed",
                "parallelism": size,
                "completions": size,
                "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": pattern}]},
                "template": {"spec": spec},
            },
        }
    )
    try:
        return _reclaimed(f"batch.kubernetes.io/job-name={NAME}", size)
    finally:
        kubectl("delete", "job", NAME, "--cascade=foreground", "--wait=true", timeout=180)


def _pod_spec() -> Json:
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": COMMAND,
        "resources": {"limits": {layout.GPU_RESOURCE: 1}},
    }
    return {"containers": [container]}


def _reclaimed(selector: str, size: int) -> Trial | None:
    """Wait until all run, have a spot node reclaimed that has one of them, and time what follows."""
    with watched(selector) as seen:
        wait_until(
            f"{size} pods running", lambda: len(seen.running) >= size, timeout=90, seen=lambda: str(seen)
        )
        wait_until(
            "they have settled",
            lambda: time.time() - max(seen.running.values()) > SETTLED_SECONDS,
            timeout=30,
            seen=lambda: str(seen),
        )
        before = set(seen.at["created"])
        pods = get("pods", "-l", selector)
        hit = pods[0]["spec"]["nodeName"]
        lost = sum(1 for pod in pods if pod["spec"]["nodeName"] == hit)
        # A gang goes as a whole; a Job replaces what was on the node.
        expected = size if names.LABEL_JOB in selector else lost
        control.reclaim(hit, 60)
        try:
            return _timed(seen, before, expected, hit)
        finally:
            control.withdraw(hit)
            wait_until(
                f"{hit} is given back",
                lambda: not get(f"node/{hit}")[0]["spec"].get("unschedulable"),
                timeout=60,
                seen=lambda: json.dumps(get(f"node/{hit}")[0]["spec"]),
            )


def _timed(seen: Watched, before: set[str], expected: int, node: str) -> Trial | None:
    def back() -> bool:
        return len([uid for uid in dict(seen.running) if uid not in before]) >= expected

    try:
        wait_until("the replacements run", back, timeout=JOB_TIMEOUT, seen=lambda: str(seen))
    except TimeoutError:
        return None
    annotations = get(f"node/{node}")[0]["metadata"]["annotations"]
    marked = parse_time(annotations[names.CORDONED_AT])
    stages = {
        stage: seen.last(stage, expected, before, old=stage in ("told", "ended")) - marked for stage in STAGES
    }
    return Trial(stages)
