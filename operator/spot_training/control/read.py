"""From the API server's JSON to the planner's views: pure, tolerant of what is missing."""

import json
from collections.abc import Mapping, Set
from typing import Any, Final

from spot_training.api import names
from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.pool import SpotPoolSpec, SpotPoolStatus
from spot_training.api.status import SpotTrainingJobStatus
from spot_training.api.times import parse_time
from spot_training.control import kueue
from spot_training.control.pods import VOLUME
from spot_training.control.policies.classify import INIT_FAILED, START_ERRORS, VOLUME_FULL
from spot_training.control.policies.marks import GONE_TAINTS, read_notice
from spot_training.control.policies.needs import capacity, pod_needs
from spot_training.control.policies.price import read_price
from spot_training.control.world import Claim, Exit, Job, Node, Pod, Pool, Report, Taint

Json = Mapping[str, Any]

MAX_REPORT_BYTES: Final = 4096
MAX_EXTRAS: Final = 16
MAX_START_WORDS: Final = 400
MAX_DIGITS: Final = 9
MAX_STEP: Final = 2**53
"""Every JSON reader keeps whole numbers up to here; the API server would refuse a status with a longer one."""


def seconds(text: str | None) -> float | None:
    """Seconds since the epoch of a Kubernetes time, or None."""
    return parse_time(text) if text else None


def read_job(raw: Json) -> Job:
    """A SpotTrainingJob. Raises ``pydantic.ValidationError`` where the CRD in the cluster allows what we do not."""
    meta = raw["metadata"]
    return Job(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        generation=meta.get("generation", 0),
        spec=SpotTrainingJobSpec.model_validate(raw["spec"]),
        status=SpotTrainingJobStatus.model_validate(raw.get("status") or {}),
        deleting="deletionTimestamp" in meta,
        labels=meta.get("labels") or {},
        queue=(meta.get("labels") or {}).get(kueue.QUEUE, ""),
        priority_class=(meta.get("labels") or {}).get(kueue.PRIORITY, ""),
        version=meta.get("resourceVersion", ""),
    )


def read_pool(raw: Json) -> Pool:
    """A SpotPool. Raises ``pydantic.ValidationError``."""
    return Pool(
        name=raw["metadata"]["name"],
        spec=SpotPoolSpec.model_validate(raw["spec"]),
        generation=raw["metadata"].get("generation", 0),
        status=SpotPoolStatus.model_validate(raw.get("status") or {}),
        uid=raw["metadata"].get("uid", ""),
        deleting="deletionTimestamp" in raw["metadata"],
    )


def read_claim(raw: Json) -> Claim:
    """A PersistentVolumeClaim."""
    meta = raw["metadata"]
    return Claim(
        name=meta["name"],
        uid=meta["uid"],
        phase=(raw.get("status") or {}).get("phase", "Pending"),
        modes=tuple((raw.get("spec") or {}).get("accessModes") or ()),
        deleting="deletionTimestamp" in meta,
        owner_uids=tuple(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        made_for=(meta.get("labels") or {}).get(names.LABEL_JOB, ""),
        volume=(raw.get("spec") or {}).get("volumeName") or "",
        capacity=str(((raw.get("status") or {}).get("capacity") or {}).get("storage") or "")[:256],
    )


def read_node(raw: Json) -> Node:
    """A Node, without its heartbeats: two reads are equal unless something changed that decides."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    taints = tuple(
        Taint(each["key"], each.get("value") or "", each.get("effect") or "")
        for each in spec.get("taints") or ()
    )
    added = {
        each["key"]: parse_time(each["timeAdded"])
        for each in spec.get("taints") or ()
        if each.get("timeAdded")
    }
    ready: Json = next((each for each in status.get("conditions") or () if each.get("type") == "Ready"), {})
    return Node(
        name=meta["name"],
        uid=meta["uid"],
        labels=meta.get("labels") or {},
        ready=ready.get("status") == "True",
        ready_since=seconds(ready.get("lastTransitionTime")) or 0.0,
        schedulable=not spec.get("unschedulable", False),
        taints=taints,
        capacity=capacity(status.get("allocatable") or {}),
        notice=read_notice(taints, meta.get("annotations") or {}, added),
        out_of_service=any(taint.key in GONE_TAINTS for taint in taints),
        **_node_price((meta.get("annotations") or {}).get(names.PRICE)),
    )


def _node_price(text: str | None) -> dict[str, Any]:
    """The node's own price, or what is wrong with it."""
    try:
        return {"price": read_price(text)} if text is not None else {}
    except ValueError as error:
        return {"price_trouble": f"{names.PRICE}: {error}"}


def read_pod(raw: Json, removed: bool = False) -> Pod:
    """A Pod; ``removed`` where this is the last that was seen of it."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels = meta.get("labels") or {}
    owner: Json = next((each for each in meta.get("ownerReferences") or () if each.get("controller")), {})
    ours = str(owner.get("apiVersion", "")).startswith(names.GROUP + "/")
    sidecars = {
        each["name"] for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"
    }
    common: dict[str, Any] = {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "node": spec.get("nodeName") or "",
        "phase": status.get("phase") or "Pending",
        "requests": pod_needs(spec),
        "removed": removed,
        "ended": _ended(spec, status, sidecars),
    }
    # A job's pods push away only what has a lower priority.
    if ours and owner["kind"] == names.POOL_KIND and (spec.get("priority") or 0) < 0:
        return Pod(
            **common,
            pool=str(owner["name"]),
            made_from=str((meta.get("annotations") or {}).get(names.MADE_FROM) or ""),
            index=_number(labels.get(names.LABEL_INDEX)),
            deleting="deletionTimestamp" in meta,
            trouble=_trouble(status, sidecars),
        )
    if not ours or owner["kind"] != names.JOB_KIND:
        return Pod(**common)
    deleted_at = seconds(meta.get("deletionTimestamp"))
    main: Json = next(
        (
            each
            for each in status.get("containerStatuses") or ()
            if each["name"] == spec["containers"][0]["name"]
        ),
        {},
    )
    state = main.get("state") or {}
    ended = state.get("terminated") or {}
    started = (state.get("running") or ended).get("startedAt")
    return Pod(
        **common,
        created=seconds(meta.get("creationTimestamp")) or 0.0,
        job=str(owner["name"]),
        job_uid=owner["uid"],
        claim=_claim(spec),
        attempt=_number(labels.get(names.LABEL_ATTEMPT)),
        index=_number(labels.get(names.LABEL_INDEX)),
        deleting=deleted_at is not None,
        kill_at=deleted_at,
        grace=spec.get("terminationGracePeriodSeconds") or 30,
        accepted_at=seconds(status.get("startTime")),
        # Kubelet says 1970 of a container that it could not start at all.
        started_at=seconds(started) or None,
        running="running" in state,
        gated=bool(spec.get("schedulingGates")),
        exit=_exit(ended) if ended else None,
        ended_at=_last_end(status) if common["ended"] else None,
        budget_seconds=_number((meta.get("annotations") or {}).get(names.BUDGET_SECONDS)) or None,
        report=read_report(ended.get("message")),
        status_reason=_status_reason(status, sidecars),
        disruption=_disruption(status),
        trouble=_trouble(status, sidecars),
    )


def _claim(spec: Json) -> str:
    """The claim that holds the checkpoints, by the name that the operator gives its volume."""
    for volume in spec.get("volumes") or ():
        if volume.get("name") == VOLUME:
            return str((volume.get("persistentVolumeClaim") or {}).get("claimName") or "")
    return ""


def _exit(ended: Json) -> Exit:
    reason = ended.get("reason") or ""
    # Else the message is the program's: its report is read from it.
    said = str(ended.get("message") or "")[:MAX_START_WORDS] if reason in START_ERRORS else ""
    return Exit(ended.get("exitCode", -1), reason, seconds(ended.get("finishedAt")) or 0.0, said)


def _status_reason(status: Json, sidecars: Set[str]) -> str:
    """The reason that kubelet gives for the pod's end, or that an init container of it failed."""
    return status.get("reason") or (INIT_FAILED if _init_failure(status, sidecars) else "")


def _init_failure(status: Json, sidecars: Set[str]) -> str:
    """Which init container failed, and how, or an empty string."""
    for each in status.get("initContainerStatuses") or ():
        ended = (each.get("state") or {}).get("terminated") or {}
        told = ended.get("exitCode") and ended.get("reason") not in START_ERRORS
        if told and each.get("name") not in sidecars:
            why = f" ({ended['reason']})" if ended.get("reason") not in (None, "", "Error") else ""
            return f"init container {each.get('name')} ended with exit code {ended['exitCode']}{why}"
    return ""


def _last_end(status: Json) -> float | None:
    """When the last of the pod's containers ended, where kubelet knows."""
    every = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    ends = [(each.get("state") or {}).get("terminated") or {} for each in every]
    return max((seconds(each.get("finishedAt")) or 0.0 for each in ends), default=0.0) or None


def _number(text: str | None) -> int:
    """A whole number, or 0: anybody who may write pods may have written this, digits of other scripts included."""
    return int(text) if text and len(text) <= MAX_DIGITS and text.isascii() and text.isdigit() else 0


def _ended(spec: Json, status: Json, sidecars: Set[str]) -> bool:
    """Whether no container of the pod can run any more; ``sidecars``: its init containers that run beside the others.

    All containers terminated is enough, since nothing restarts them; the phase follows a moment later. The phase
    alone proves nothing: pod garbage collection sets Failed on pods of lost nodes, whose containers may have started
    after the last that was heard of them. A pod that was refused by its node has a final phase and no container
    statuses; it never ran anything.
    """
    states = [each.get("state") or {} for each in status.get("containerStatuses") or ()]
    if (
        states
        and len(states) == len(spec.get("containers") or ())
        and all("terminated" in state for state in states)
    ):
        beside = (each for each in status.get("initContainerStatuses") or () if each.get("name") in sidecars)
        return not any("running" in (each.get("state") or {}) for each in beside)
    if spec.get("nodeName") and _disruption(status) == "DeletionByPodGC":
        return False
    states += [each.get("state") or {} for each in status.get("initContainerStatuses") or ()]
    return status.get("phase") in ("Succeeded", "Failed") and not any("running" in state for state in states)


def _disruption(status: Json) -> str:
    for each in status.get("conditions") or ():
        if each.get("type") == names.DISRUPTION_TARGET and each.get("status") == "True":
            return str(each.get("reason") or "Unknown")
        if each.get("type") == kueue.TERMINATION_TARGET and each.get("status") == "True":
            return kueue.TERMINATION_TARGET
    return ""


def _trouble(status: Json, sidecars: Set[str]) -> str:
    """Why the pod does not start, in the words of scheduler or kubelet; empty while nothing is wrong."""
    for each in status.get("conditions") or ():
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return f"{each.get('reason')}: {each.get('message', '')}"
    if _status_reason(status, sidecars) == INIT_FAILED:
        return _init_failure(status, sidecars)
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def read_agent(raw: Json) -> str | None:
    """The node's name where the pod is an agent of ours, whatever its state; None for every other pod."""
    if names.LABEL_PROVIDER not in (raw["metadata"].get("labels") or {}):
        return None
    return (raw.get("spec") or {}).get("nodeName") or None


def is_ready(raw: Json) -> bool:
    """Whether the pod is ready; for an agent: its source answered within the last three polls."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def read_report(message: str | None) -> Report | None:
    """The report in a termination message: one line of JSON. Anything else is no report, never an error."""
    if not message or len(message.encode()) > MAX_REPORT_BYTES:
        return None
    for line in reversed(message.strip().splitlines()):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict):
            return _report(said)
    return None


def _report(said: Json) -> Report:
    def whole(key: str) -> int | None:
        value = said.get(key)
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STEP
        return value if fits else None

    def word(key: str) -> str | None:
        value = said.get(key)
        return value[:256] if isinstance(value, str) else None

    def time(key: str) -> float | None:
        try:
            return seconds(word(key))
        except ValueError:
            return None

    return Report(
        reason=word("reason") or "",
        step=whole("step"),
        total_steps=whole("totalSteps"),
        checkpoint_step=whole("checkpointStep"),
        checkpoint_time=time("checkpointTime"),
        resumed_step=whole("resumedStep"),
        resumed_time=time("resumedTime"),
        volume_full=VOLUME_FULL in (word("reason"), word("saveTrouble")),
        extras=_extras(said.get("extras")),
    )


def _extras(said: object) -> dict[str, str]:
    """The program's own facts, as texts short enough for a status."""
    if not isinstance(said, dict):
        return {}
    made = {
        str(key)[:64]: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()
    }
    return {key: value[:256] for key, value in list(made.items())[:MAX_EXTRAS]}
