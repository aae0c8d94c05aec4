"""What the tests of the planner are written with: jobs, pools, nodes, pods, and a scene in which they act."""

import dataclasses
from decimal import Decimal
from typing import Any

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.model import Condition
from spot_training.api.pool import SpotPoolSpec
from spot_training.api.status import Current, SpotTrainingJobStatus, Stop
from spot_training.api.times import parse_time
from spot_training.control.act import Action, CreatePod, DeletePod, actions
from spot_training.control.draft import Plan
from spot_training.control.plan import plan
from spot_training.control.policies.demand import Choice, Request, Waiting
from spot_training.control.policies.fitting import shape_of
from spot_training.control.policies.placement import place
from spot_training.control.supply import Supply
from spot_training.control.world import (
    Accepted,
    Ask,
    Claim,
    Exit,
    Job,
    Node,
    Notice,
    Pod,
    Pool,
    Refusal,
    Report,
    Reservation,
    Shape,
    Source,
    Taint,
    Terms,
    World,
)

NOW = 1_900_000_000.0
GPU = "nvidia.com/gpu"
UID = "job-uid"


def spec(replicas: int = 1, gpus: int | str = 4, **fields: Any) -> SpotTrainingJobSpec:
    """A job's spec; `fields` in camelCase, as in a manifest."""
    checkpoint = {"mountPath": "/ckpt", "claimName": "claim", "writer": "Library"}
    container = {"name": "main", "image": "train:1", "resources": {"limits": {GPU: gpus}}}
    return SpotTrainingJobSpec.model_validate(
        {
            "replicas": replicas,
            "pools": ["a", "b"],
            "template": {"spec": {"containers": [container]}},
            **fields,
            "checkpoint": checkpoint | fields.get("checkpoint", {}),
        }
    )


def job(made: SpotTrainingJobSpec | None = None, **fields: Any) -> Job:
    about: dict[str, Any] = {
        "namespace": "ns",
        "name": "job",
        "uid": UID,
        "created": NOW - 60,
        "generation": 1,
        "status": SpotTrainingJobStatus(),
    }
    return Job(spec=made or spec(), **(about | fields))


def pool(name: str, **fields: Any) -> Pool:
    return Pool(name, SpotPoolSpec.model_validate({"nodeSelector": {"pool": name}, **fields}))


def node(name: str, in_pool: str = "a", gpus: int = 4, **fields: Any) -> Node:
    about: dict[str, Any] = {"uid": f"{name}-uid", "labels": {"pool": in_pool}, "capacity": {GPU: gpus}}
    return Node(name=name, **(about | fields))


def shape(gpus: int = 4, **more: int) -> Shape:
    """A pod that asks for so many GPUs, and of other resources what is said."""
    wanted = {GPU: gpus, "pods": 1, **more}
    return Shape(needs=tuple(sorted((key, value) for key, value in wanted.items() if value)))


def reclaim(seconds: float | None = 60.0, id_: str = "n-1", kind: str = "terminate") -> Notice:
    """A notice of our agent, whose machine goes in that many seconds from NOW."""
    deadline = None if seconds is None else NOW + seconds
    return Notice(kind, id_, "eci", deadline, noticed_at=NOW - 1, marked_at=NOW - 0.5)


class Scene:
    """One job and its world. `step` plans, writes the status, and returns what is to be done.

    Each step also asserts what holds of every plan: the same again gives the same, and planning once more from
    what was written writes nothing new.
    """

    def __init__(self, made: SpotTrainingJobSpec | None = None, **fields: Any) -> None:
        self.job = job(made, **fields)
        self.now = NOW
        self.pools = {name: pool(name) for name in ("a", "b")}
        self.nodes = {name: node(name, name[0]) for name in ("a1", "a2", "b1", "b2")}
        self.pods: dict[str, Pod] = {}
        self.claim: Claim | None = Claim("claim", "claim-uid")
        self.claim_user = ""
        self.source: Source | None = None
        self.agents = {"a1", "a2", "b1", "b2"}
        self.obstacle, self.refused = "", 0
        self.used: dict[tuple[str, str], int] = {}
        self.prices: dict[str, Decimal] = {}
        self.reservations: tuple[Reservation, ...] = ()
        self.dry_run: Refusal | bool = True
        self.volumes: dict[str, Terms] = {}
        self.events: dict[str, str] = {}
        self.leases: dict[str, float] = {}
        """Until when each node's kubelet renews its Lease; ``clocks``: by how much its clock runs ahead."""
        self.clocks: dict[str, float] = {}
        self.asked: list[Ask] = []
        self.plan = Plan(self.job.status)

    def accepted(self) -> Accepted | Refusal:
        return self.dry_run if isinstance(self.dry_run, Refusal) else Accepted()

    def choice(self, request: Request) -> Choice:
        """What placement decides for the job where no other waits."""
        supply = Supply.of(self.nodes.values(), self.pools.values(), self.used)
        supply.put_prices(self.prices)
        shape = shape_of(request.pod, request.volumes, request.together, request.ceiling)
        waiting = Waiting(self.job.key, UID, self.job.created, request, shape)
        return place((waiting,), supply, self.reservations, {}, self.now)[self.job.key]

    def world(self, asked: frozenset[Ask] = frozenset(), request: Request | None = None) -> World:
        supply = Supply.of(self.nodes.values(), self.pools.values())
        return World(
            pods=tuple(self.pods.values()),
            nodes=self.nodes,
            pools=self.pools,
            members=supply.by_pool,
            silent=supply.silent,
            prices=self.prices,
            claim=self.claim,
            claim_user=self.claim_user,
            source=self.source,
            agents=self.agents,
            obstacle=self.obstacle,
            refused=self.refused,
            live=Ask.LIVE_PODS in asked,
            leases={name: at + self.clocks.get(name, 0.0) for name, at in self.leases.items()}
            if Ask.LEASES in asked
            else None,
            renewals={name: int(min(at, self.now) * 1000) for name, at in self.leases.items()}
            if Ask.LEASES in asked
            else None,
            dry_run=self.accepted() if Ask.DRY_RUN in asked else None,
            choice=self.choice(request) if request and asked & {Ask.PLACEMENT, Ask.ROOM} else None,
            volumes=self.volumes if Ask.VOLUMES in asked else {},
            events=self.events if Ask.EVENTS in asked else None,
        )

    def planned(self) -> Plan:
        """The plan, after all that it wanted to be looked up."""
        asked: frozenset[Ask] = frozenset()
        request: Request | None = None
        for _ in range(6):
            made = plan(self.job, self.world(asked, request), self.now)
            if not made.asks:
                self.asked = sorted({*self.asked, *asked}, key=lambda ask: ask.name)
                self.asked = [ask for ask in self.asked if ask not in (Ask.PLACEMENT, Ask.ROOM)]
                assert plan(self.job, self.world(asked, request), self.now) == made
                return made
            asked |= made.asks
            request = made.request
        raise AssertionError(f"the planner does not stop asking for {made.asks}")

    def step(self, after: float = 0.0) -> list[Action]:
        self.now += after
        self.asked = []
        before = self.status
        self.plan = self.planned()
        check_progress(before, self.plan.status)
        self.job = dataclasses.replace(self.job, status=written(self.plan.status))
        again = self.planned()
        assert again.status == self.status, diff(self.status, again.status)
        assert self.plan.wake_at is None or self.plan.wake_at > self.now
        return actions(self.job, self.world(), self.now)

    def run(self, after: float = 0.0) -> "Scene":
        """A step whose actions are carried out: pods appear, bound to a free node each, or begin to go."""
        for action in self.step(after):
            match action:
                case CreatePod(index=index):
                    self.bind(index)
                case DeletePod(name=name, grace=grace):
                    known = self.pods[name]
                    self.pods[name] = dataclasses.replace(
                        known, deleting=True, kill_at=self.now + (grace or known.grace)
                    )
        return self

    def bind(self, index: int) -> None:
        attempt = self.current.attempt
        name = f"job-{attempt}-{index}"
        self.pods[name] = Pod(
            "ns",
            name,
            f"{name}-uid",
            self.current.node or self.free_node(index),
            created=self.now,
            job="job",
            job_uid=UID,
            attempt=attempt,
            index=index,
            grace=55,
        )

    def free_node(self, index: int) -> str:
        """A node of the rank's pool that has none of the attempt's pods."""
        attempt, in_pool = self.current.attempt, self.current.pool_of(index)
        taken = {each.node for each in self.pods.values() if each.attempt == attempt}
        return next(
            each.name
            for each in self.nodes.values()
            if each.labels["pool"] == in_pool
            and each.name not in taken | {*self.current.avoid}
            and each.ready
        )

    def pod(self, index: int = 0) -> Pod:
        return self.pods[f"job-{self.current.attempt}-{index}"]

    def change(self, index: int = 0, **fields: Any) -> "Scene":
        made = dataclasses.replace(self.pod(index), **fields)
        self.pods[made.name] = made
        return self

    def started(self) -> "Scene":
        """The attempt's pods all run, and the operator has seen it."""
        self.run()
        for index in range(self.job.spec.replicas):
            self.change(index, started_at=self.now, running=True, phase="Running")
        self.run()
        assert self.status.phase == "Running", self.status
        return self

    def exit(self, code: int, index: int = 0, report: Report | None = None, **fields: Any) -> "Scene":
        reason = "Completed" if code == 0 else "Error"
        done = {"phase": "Failed" if code else "Succeeded", "running": False, "ended": True}
        return self.change(
            index, **(done | {"exit": Exit(code, reason, self.now), "report": report} | fields)
        )

    def remove(self, index: int = 0, tombstone: bool = True, **fields: Any) -> "Scene":
        """The pod object is gone, with a last event (a tombstone) or unseen."""
        if tombstone:
            return self.change(index, removed=True, running=False, **fields)
        del self.pods[self.pod(index).name]
        return self

    def mark(self, name: str, notice: Notice | None, **fields: Any) -> "Scene":
        return self.on_node(name, notice=notice, schedulable=notice is None, **fields)

    def on_node(self, name: str, **fields: Any) -> "Scene":
        self.nodes[name] = dataclasses.replace(self.nodes[name], **fields)
        return self

    def edit(self, **fields: Any) -> "Scene":
        """The user edits the spec; fields in camelCase."""
        made = SpotTrainingJobSpec.model_validate(self.job.spec.to_json() | fields)
        self.job = dataclasses.replace(self.job, spec=made, generation=self.job.generation + 1)
        return self

    @property
    def status(self) -> SpotTrainingJobStatus:
        return self.job.status

    @property
    def current(self) -> Current:
        assert self.status.current is not None, self.status
        return self.status.current

    @property
    def stop(self) -> Stop:
        assert self.current.stop is not None, self.current
        return self.current.stop

    def condition(self, type_: str = "Running") -> Condition:
        found = [each for each in self.status.conditions if each.type == type_]
        assert found, f"no condition {type_}: {self.status.conditions}"
        return found[0]

    def why(self, type_: str = "Running") -> tuple[str, str]:
        """Status and reason of a condition."""
        found = self.condition(type_)
        return found.status, found.reason

    @property
    def counts(self) -> tuple[int, int]:
        """Disruptions and failures."""
        return self.status.disruptions, self.status.failures

    def left(self, text: str | None) -> float:
        """Seconds from now until a time of the status."""
        assert text is not None
        return round(parse_time(text) - self.now, 3)


def written(status: SpotTrainingJobStatus) -> SpotTrainingJobStatus:
    """The status as it comes back from the API server: through JSON, every bound checked."""
    return SpotTrainingJobStatus.model_validate(status.to_json())


def check_progress(before: SpotTrainingJobStatus, after: SpotTrainingJobStatus) -> None:
    """What holds between any two statuses of which one was planned from the other."""
    for name in ("failures", "disruptions", "lost_seconds"):
        assert getattr(after, name) >= getattr(before, name), name
    assert after.failures + after.disruptions - before.failures - before.disruptions <= 1
    old, new = before.current, after.current
    assert (new.attempt if new else 0) - (old.attempt if old else 0) in (0, 1)
    if old and new and old.attempt == new.attempt:
        assert old.stop is None or new.stop is not None, "a stop was taken back"
        assert old.end is None or new.end == old.end, "an end was changed"
        if old.stop and old.stop.deadline:
            assert new.stop
            assert new.stop.deadline
            assert parse_time(new.stop.deadline) <= parse_time(old.stop.deadline)
    if before.phase in ("Succeeded", "Failed"):
        assert after == before, "a finished job was changed"


def diff(one: SpotTrainingJobStatus, other: SpotTrainingJobStatus) -> str:
    left, right = one.to_json(), other.to_json()
    return "\n".join(
        f"{key}: {left.get(key)} != {right.get(key)}"
        for key in left | right
        if left.get(key) != right.get(key)
    )


def taint(key: str, effect: str = "NoSchedule", value: str = "") -> Taint:
    return Taint(key, value, effect)
