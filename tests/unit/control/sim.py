"""A cluster in memory: an API server with its watch, machines with kubelets, a scheduler. Time is a number.

What the API server says and what the machines do are kept apart: a machine that is cut off runs on, unseen.
"""

import marshal
from collections.abc import Callable
from typing import Any, TypeVar

from spot_training.api.times import format_micro_time, format_time, parse_time
from spot_training.cluster.client import ApiError
from tests.unit.control.objects import Json, merged, raw_node

GPUS = 4
T = TypeVar("T")


def copied(raw: T) -> T:
    """A copy all the way down of what JSON can be: most of what a simulated cluster does, so the quickest there is."""
    made: T = marshal.loads(marshal.dumps(raw))  # type: ignore[arg-type]
    return made


class Crash(BaseException):
    """The operator is killed."""


class Sim:
    """The cluster. `before_write` may kill the operator; `lose` says how many answers get lost."""

    def __init__(self, job: Json, pool: Json, nodes: list[str]) -> None:
        self.now = 1_900_000_000.0
        self.version = 100
        self.job, self.pool = job, pool
        self.others: dict[str, Json] = {}
        """Jobs beside that one, by name."""
        self.nodes: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.containers: dict[str, str] = {}
        self.machine: dict[str, str] = {}
        self.cut_since: dict[str, float] = {}
        self.leases: dict[str, float] = {}
        self.watch: list[tuple[str, str, Json]] = []
        self.services: set[str] = set()
        self.claims: dict[str, Json] = {}
        """Those that were made here, by name."""
        self.quota: int | None = None
        """How many pods that have not ended the namespace may have."""
        self.gone = False
        """The job has been deleted."""
        self.created: list[str] = []
        """Names of all pods that were ever made."""
        self.lose = 0
        self.before_write: Callable[[], None] = lambda: None
        self.clock_offset = 0.0
        self._uids = 0
        for name in nodes:
            self.add_machine(name)

    # What the operator sees

    async def get(self, path: str, **query: str) -> Json:
        parts = path.split("/")
        if "leases" in parts:
            if parts[-1] not in self.leases:
                raise refused(404, "NotFound", "lease")
            renewed, uid = self.leases[parts[-1]], self.nodes[parts[-1]]["metadata"]["uid"]
            meta = {
                "name": parts[-1],
                "resourceVersion": str(int(renewed * 1000)),
                "ownerReferences": [{"kind": "Node", "uid": uid}],
            }
            return {"metadata": meta, "spec": {"renewTime": format_micro_time(renewed)}}
        if "spottrainingjobs" in parts:
            return copied(self.named(parts[-1]))
        if parts[-1] == "pods":
            label, _, value = query["labelSelector"].partition("=")
            mine = [pod for pod in self.pods.values() if pod["metadata"]["labels"][label] == value]
            return {"metadata": {"resourceVersion": str(self.version)}, "items": copied(mine)}
        if parts[-2] == "pods" and parts[-1] in self.pods:
            return copied(self.pods[parts[-1]])
        if parts[-2] == "services" and parts[-1] in self.services:
            owners = [{"uid": self.named(parts[-1])["metadata"]["uid"]}]
            return {"metadata": {"name": parts[-1], "ownerReferences": owners}}
        raise refused(404, "NotFound", path)

    def named(self, name: str) -> Json:
        """The job of that name; refused where there is none."""
        mine = name == self.job["metadata"]["name"] and not self.gone
        known = self.job if mine else self.others.get(name)
        if known is None:
            raise refused(404, "NotFound", name)
        return known

    async def create(self, path: str, body: Json, **query: str) -> Json:
        if query.get("dryRun"):
            self._check_quota()
            return body
        self.before_write()
        name = body["metadata"]["name"]
        if path.endswith("/persistentvolumeclaims"):
            return self._answer(self._create_claim(body))
        if path.endswith("/services"):
            if name in self.services:
                raise refused(409, "AlreadyExists", name)
            self.services.add(name)
            return body
        assert path.endswith("/pods"), path
        if name in self.pods:
            raise refused(409, "AlreadyExists", name)
        self.check_creation(body)
        self._check_quota()
        self._uids += 1
        made: Json = copied(body)
        made["metadata"] |= {
            "uid": f"pod-{self._uids}",
            "creationTimestamp": format_time(self.now),
        }
        made["status"] = {"phase": "Pending"}
        self.pods[name] = made
        self.created.append(name)
        return self._answer(self._tell("pods", "ADDED", made))

    def check_creation(self, body: Json) -> None:
        """A pod may be made only for the attempt that is open in the written status, while nothing has started."""
        status = self.named(body["metadata"]["labels"]["spot.training/job"])["status"]
        current = status.get("current") or {}
        label = body["metadata"]["labels"]["spot.training/attempt"]
        assert status.get("phase") not in ("Succeeded", "Failed"), f"a finished job gets {label}"
        assert label == str(current.get("attempt")), f"a pod of attempt {label} while {current}"
        assert not current.get("stop"), f"a stopped attempt gets a pod: {current}"
        assert not current.get("end"), f"an ended attempt gets a pod: {current}"

    def _check_quota(self) -> None:
        there = sum(pod["status"]["phase"] in ("Pending", "Running") for pod in self.pods.values())
        if self.quota is not None and there >= self.quota:
            raise refused(403, "Forbidden", "exceeded quota: pods")

    def _create_claim(self, body: Json) -> Json:
        name = body["metadata"]["name"]
        if name in self.claims:
            raise refused(409, "AlreadyExists", name)
        self._uids += 1
        made: Json = copied(body)
        made["metadata"]["uid"] = f"claim-{self._uids}"
        made["status"] = {"phase": "Bound"}
        self.claims[name] = made
        self.created.append(name)
        return self._tell("claims", "ADDED", made)

    async def patch(self, path: str, body: Json, **_: Any) -> Json:
        self.before_write()
        if "persistentvolumeclaims" in path:
            return self._answer(self._patch_claim(path.rsplit("/", 1)[1], body["metadata"]))
        assert path.endswith("/status"), path
        job = self.named(path.split("/")[-2])
        if body["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise refused(409, "Conflict", "the object has been modified")
        job["status"] = merged(job.get("status", {}), body["status"])
        return self._answer(self._tell("jobs", "MODIFIED", job))

    def _patch_claim(self, name: str, metadata: Json) -> Json:
        claim = self.claims.get(name)
        if claim is None:
            raise refused(404, "NotFound", name)
        if metadata.get("uid", claim["metadata"]["uid"]) != claim["metadata"]["uid"]:
            raise refused(409, "Conflict", "the UID in the precondition")
        claim["metadata"] = merged(claim["metadata"], metadata)
        return self._tell("claims", "MODIFIED", claim)

    async def delete(
        self, path: str, *, uid: str | None = None, grace: int | None = None, propagation: str | None = None
    ) -> Json:
        self.before_write()
        if "spottrainingjobs" in path:
            return self._answer(self._delete_finished(path.rsplit("/", 1)[1], uid))
        pod = self.pods.get(path.rsplit("/", 1)[1])
        if pod is None:
            raise refused(404, "NotFound", path)
        if pod["metadata"]["uid"] != uid:
            raise refused(409, "Conflict", "the UID in the precondition")
        return self._answer(self.delete_pod(pod, grace))

    def _delete_finished(self, name: str, uid: str | None) -> Json:
        """The operator deletes the job, as it may when its time to live after its end is over."""
        job = self.named(name)
        assert job["metadata"]["uid"] == uid, f"another job than {uid} would be deleted"
        ttl, status = job["spec"].get("ttlSecondsAfterFinished"), job["status"]
        assert status.get("phase") in ("Succeeded", "Failed"), f"{name} is deleted before its end: {status}"
        assert self.now >= parse_time(status["completionTime"]) + ttl, f"{name} is deleted before its time"
        self.gone = True
        self._collect(job)
        return self._tell("jobs", "DELETED", job)

    def _collect(self, job: Json) -> None:
        """What the garbage collector does once the job is gone."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        self.services.discard(name)
        for pod in list(self.pods.values()):
            if pod["metadata"]["labels"]["spot.training/job"] == name:
                self.delete_pod(pod)
        for claim in list(self.claims.values()):
            if [each["uid"] for each in claim["metadata"].get("ownerReferences") or ()] == [uid]:
                self.delete_claim(claim["metadata"]["name"])

    def delete_claim(self, name: str) -> None:
        """Somebody deletes it, and nobody uses it."""
        self._tell("claims", "DELETED", self.claims.pop(name))

    def delete_pod(self, pod: Json, grace: int | None = None) -> Json:
        if not pod["spec"].get("nodeName"):
            return self.remove(pod)
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        at, meta = self.now + seconds, pod["metadata"]
        if "deletionTimestamp" not in meta or at < parse_time(meta["deletionTimestamp"]):
            meta["deletionTimestamp"] = format_time(at)
        return self._tell("pods", "MODIFIED", pod)

    def _answer(self, made: Json) -> Json:
        if self.lose:
            self.lose -= 1
            raise TimeoutError("the answer was lost")
        return made

    def _tell(self, kind: str, type_: str, raw: Json) -> Json:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        made = copied(raw)
        self.watch.append((kind, type_, made))
        return made

    # What happens to machines and pods

    def add_machine(self, name: str) -> None:
        self._uids += 1
        made = raw_node(name)
        made["metadata"]["uid"] = f"node-{self._uids}"
        self.nodes[name] = made
        self.machine[name] = "up"
        self.leases[name] = self.now
        self._tell("nodes", "ADDED", made)

    def remove(self, pod: Json) -> Json:
        del self.pods[pod["metadata"]["name"]]
        return self._tell("pods", "DELETED", pod)

    def on(self, name: str) -> list[Json]:
        return [pod for pod in self.pods.values() if pod["spec"].get("nodeName") == name]

    def edit_job(self, name: str = "job", **spec: Any) -> None:
        job = self.named(name)
        job["spec"] |= spec
        job["metadata"]["generation"] += 1
        self._tell("jobs", "MODIFIED", job)

    def add_job(self, job: Json) -> None:
        """Somebody makes another job."""
        self.others[job["metadata"]["name"]] = job
        self._tell("jobs", "ADDED", job)

    def delete_job(self, name: str) -> None:
        """Somebody deletes it; the garbage collector takes what it owns."""
        job = self.others.pop(name)
        self._tell("jobs", "DELETED", job)
        self._collect(job)

    def renew(self) -> None:
        """Kubelets of machines that are up and connected renew their Leases."""
        for name, state in self.machine.items():
            if state == "up":
                self.leases[name] = self.now

    def bind(self, pod: Json) -> None:
        for name, raw in self.nodes.items():
            free = GPUS * len(
                [each for each in self.on(name) if each["status"]["phase"] in ("Pending", "Running")]
            )
            if free or raw["spec"].get("unschedulable") or self.ready(name) != "True":
                continue
            pod["spec"]["nodeName"] = name
            self._tell("pods", "MODIFIED", pod)
            return

    def start(self, pod: Json) -> None:
        self.containers[pod["metadata"]["uid"]] = pod["metadata"]["name"]
        self._state(pod, "Running", {"running": {"startedAt": format_time(self.now)}})

    def end(self, pod: Json, code: int, reason: str, message: str = "") -> None:
        self.containers.pop(pod["metadata"]["uid"], None)
        started = pod["status"].get("containerStatuses")
        state = {
            "exitCode": code,
            "reason": reason,
            "finishedAt": format_time(self.now),
            "startedAt": started[0]["state"]["running"]["startedAt"] if started else None,
            "message": message,
        }
        self._state(pod, "Failed" if code else "Succeeded", {"terminated": state})

    def _state(self, pod: Json, phase: str, state: Json) -> None:
        pod["status"] |= {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        self._tell("pods", "MODIFIED", pod)

    def ready(self, name: str) -> str:
        return str(self.nodes[name]["status"]["conditions"][1]["status"])

    def set_ready(self, name: str, value: str) -> None:
        self.nodes[name]["status"]["conditions"][1] |= {
            "status": value,
            "lastTransitionTime": format_time(self.now),
        }
        self._tell("nodes", "MODIFIED", self.nodes[name])

    def mark(self, name: str, deadline: float) -> None:
        raw = self.nodes[name]
        key = "spot.training/reclaim"
        raw["spec"] |= {
            "unschedulable": True,
            "taints": [{"key": key, "value": "terminate", "effect": "NoSchedule"}],
        }
        raw["metadata"]["annotations"] = {
            "spot.training/notice-id": f"notice-{self.version}",
            "spot.training/reclaim-deadline": format_time(deadline),
            "spot.training/noticed-at": format_time(self.now),
        }
        self._tell("nodes", "MODIFIED", raw)

    def unmark(self, name: str) -> None:
        raw = self.nodes[name]
        raw["spec"] |= {"unschedulable": False, "taints": []}
        raw["metadata"]["annotations"] = {}
        self._tell("nodes", "MODIFIED", raw)

    def power_off(self, name: str) -> None:
        """The machine dies; nobody has noticed yet."""
        self.machine[name] = "off"
        for pod in self.on(name):
            self.containers.pop(pod["metadata"]["uid"], None)

    def cut(self, name: str) -> None:
        """The network to the machine is gone; its containers run on."""
        self.machine[name] = "cut"
        self.cut_since[name] = self.now

    def restore(self, name: str) -> None:
        """The machine is back: rebooted, or connected again; kubelet does what it has missed."""
        rebooted = self.machine[name] == "off"
        self.machine[name] = "up"
        self.leases[name] = self.now
        for pod in self.on(name):
            if rebooted and pod["status"]["phase"] == "Running":
                self.end(pod, 255, "Unknown")
        self.kill_orphans(name)
        self.set_ready(name, "True")

    def kill_orphans(self, name: str) -> None:
        here = {pod["metadata"]["uid"] for pod in self.pods.values()}
        for uid in [uid for uid in self.containers if uid not in here]:
            del self.containers[uid]

    def replace(self, name: str) -> None:
        """A new machine under the old name; what was on the old one is dead, and is collected."""
        self.power_off(name)
        for pod in self.on(name):
            self.remove(pod)
        self._tell("nodes", "DELETED", self.nodes[name])
        self.add_machine(name)

    def out_of_service(self, name: str) -> None:
        self.nodes[name]["spec"]["taints"] = [
            {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
        ]
        self._tell("nodes", "MODIFIED", self.nodes[name])
        for pod in self.on(name):
            self.remove(pod)


def refused(code: int, reason: str, message: str) -> ApiError:
    return ApiError(code, reason, message, {}, None)
