"""SpotTrainingJobs on the test cluster: making them, waiting for them, reading what they say."""

import json
from collections.abc import Callable
from typing import Any, Final

from tests.kit import install, places, questions, volumes
from tests.kit.kube import apply, get, kubectl
from tests.kit.shell import CommandError, wait_until

Json = dict[str, Any]

MOUNT: Final = "/mnt/checkpoint"
FOREVER: Final = "trap 'exit 143' TERM; while :; do sleep 0.1; done"
"""A shell script that goes on until it is told to stop, and then stops at once."""


def fresh_claim(name: str, namespace: str = "default") -> None:
    """A ReadWriteMany claim with nothing on it, whatever was there under that name before."""
    volume = f"{namespace}-{name}"
    kubectl("-n", namespace, "delete", "pvc", name, "--ignore-not-found", "--wait=true")
    volumes.delete_volume(volume)
    volumes.make_volume(volume, claim=(namespace, name))
    volumes.make_claim(namespace, name, volume)


def torch_job(
    name: str,
    *,
    pools: list[str],
    steps: int,
    seconds_per_step: float,
    save_every: int,
    replicas: int = 1,
    gpus: int = 2,
    hurry_from: int | None = None,
    **spec: Any,
) -> Json:
    """The example's torch training as a SpotTrainingJob, with its checkpoints on the claim of the same name.

    From the attempt `hurry_from` on, nothing is to happen to it any more: its steps take no longer than they compute.
    """
    train = ["python3", "-m", "spot_training.train", "/opt/examples/train.py", f"--steps={steps}"]
    train += [f"--save-every={save_every}"]
    command = [*train, f"--seconds-per-step={seconds_per_step}"]
    if hurry_from is not None:
        script = f'[ "$SPOT_ATTEMPT" -lt {hurry_from} ] || exec {" ".join(train)}; exec {" ".join(command)}'
        command = ["sh", "-c", script]
    container = {
        "name": "train",
        "image": install.TRAINING_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "resources": {"limits": {"nvidia.com/gpu": gpus}},
        "securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "spot.training/v1alpha1",
        "kind": "SpotTrainingJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "pools": pools,
            "template": {"spec": {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}},
            "checkpoint": {"mountPath": MOUNT, "claimName": name, "writer": "Library"},
            **spec,
        },
    }


def shell_job(name: str, script: str, **spec: Any) -> Json:
    """A job of one pod that runs a shell script and knows nothing of us."""
    pools = spec.pop("pools", ["spot-a", "spot-b"])
    made = torch_job(name, pools=pools, steps=1, seconds_per_step=0, save_every=1, **spec)
    made["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", script]
    made["spec"]["checkpoint"]["writer"] = "Other"
    return made


def start(job: Json) -> None:
    """Apply the job afresh; one of the same name goes first, with its pods."""
    remove(job["metadata"]["name"])
    apply(job)


def remove(name: str) -> None:
    """Delete the job and wait until its pods are gone, too."""
    kubectl("delete", "stj", name, "--ignore-not-found", "--wait=true")
    wait_until(
        f"the pods of {name} gone",
        lambda: not pods(name),
        timeout=90,
        seen=lambda: str([pod["metadata"]["name"] for pod in pods(name)]),
    )


def read(name: str) -> Json:
    """The job as the API server has it."""
    return get(f"stj/{name}")[0]


def status(name: str) -> Json:
    """The job's status; empty while there is none."""
    found: Json = read(name).get("status") or {}
    return found


def pods(name: str) -> list[Json]:
    """The job's pods."""
    return get("pods", "-l", f"spot.training/job={name}")


def condition(state: Json, type_: str) -> Json:
    """A condition of a status; empty where it is not there."""
    found: Json = next((each for each in state.get("conditions", []) if each["type"] == type_), {})
    return found


def wait_for(name: str, what: str, happened: Callable[[Json], bool], timeout: float = 120) -> Json:
    """Wait until the job's status is such; returns it."""
    seen: list[Json] = [{}]

    def look() -> bool:
        seen[0] = status(name)
        return happened(seen[0])

    wait_until(f"job {name}: {what}", look, timeout=timeout, every=0.2, seen=lambda: describe(name))
    return seen[0]


def wait_finished(name: str, timeout: float = 180) -> Json:
    """Wait until the job has ended, well or not."""
    return wait_for(name, "ended", lambda s: s.get("phase") in ("Succeeded", "Failed"), timeout)


def wait_running(name: str, attempt: int = 1, timeout: float = 120) -> Json:
    """Wait until that attempt or a later one runs."""
    return wait_for(
        name,
        f"attempt {attempt} runs",
        lambda s: s.get("phase") == "Running" and s["current"]["attempt"] >= attempt,
        timeout,
    )


def wait_trained(name: str, attempt: int, step: int, timeout: float = 120) -> None:
    """Wait until the attempt's rank 0 has printed that it has reached the step."""

    def reached() -> bool:
        return any(
            int(line.split()[1].split("/")[0]) >= step
            for line in logs(name, attempt).splitlines()
            if line.startswith("step ")
        )

    wait_until(
        f"job {name}: attempt {attempt} at step {step}",
        reached,
        timeout=timeout,
        seen=lambda: f"{describe(name)}\n{logs(name, attempt)[-2000:]}",
    )


def node_of(name: str, attempt: int, index: int = 0) -> str:
    """The node that a rank runs on."""
    found: str = get(f"pod/{name}-{attempt}-{index}")[0]["spec"]["nodeName"]
    return found


def logs(name: str, attempt: int, index: int = 0) -> str:
    """What a rank has printed so far; empty where its pod is not there."""
    try:
        return questions.log("default", f"{name}-{attempt}-{index}")
    except CommandError:
        return ""


def saved_steps(name: str, attempt: int) -> set[int]:
    """The steps of the whole checkpoints that are in the attempt's own directory, on the claim of that name."""
    manifests = (places.SHARED / f"default-{name}").glob(f"*-{attempt:06d}/step-*/manifest.json")
    return {int(path.parent.name.removeprefix("step-")) for path in manifests}


def accepted(name: str, attempt: int) -> set[tuple[int, int]]:
    """The older checkpoints that the attempt settled on when it began, by attempt and step: it reads no others."""
    (record,) = (places.SHARED / f"default-{name}").glob(f"*-{attempt:06d}/accepted.json")
    listed = json.loads(record.read_text())["accepted"]
    return {(int(each["fence"].rpartition("-")[2]), each["step"]) for each in listed}


def describe(name: str) -> str:
    """What a person would look at who asks what is wrong with the job."""
    parts = [json.dumps(status(name), indent=1)]
    for words in (("get", "pods", "-l", f"spot.training/job={name}", "-o", "wide"), ("get", "nodes")):
        parts.append(kubectl(*words))
    parts.append(
        kubectl(
            "get",
            "events",
            "--field-selector",
            f"involvedObject.name={name}",
            "--sort-by=.metadata.creationTimestamp",
        )
    )
    return "\n".join(parts)


def wait_told(name: str, *reasons: str) -> None:
    """Wait until the job has Events of all these reasons: they follow the status that they tell of."""
    wait_until(
        f"job {name}: Events {' '.join(reasons)}",
        lambda: set(reasons) <= set(events(name)),
        timeout=30,
        seen=lambda: describe(name),
    )


def events(name: str) -> list[str]:
    """The reasons of the job's Events, oldest first."""
    found = get(
        "events", "--field-selector", f"involvedObject.name={name},involvedObject.kind=SpotTrainingJob"
    )
    found.sort(key=lambda event: event.get("eventTime") or "")
    return [event["reason"] for event in found]
