"""``SpotTrainingJob.status``: all that the operator must remember, and what people want to know.

An attempt is opened, stopped and ended by one status write each; whatever is counted is counted in the write
that ends the attempt, once by construction.
"""

from typing import Annotated, Literal

from pydantic import Field

from spot_training.api.model import Condition, Decimal, StatusModel, Text, Time, Word

MAX_TIMELINE = 20

Phase = Literal["Pending", "Starting", "Running", "Recovering", "Suspended", "Succeeded", "Failed"]
"""A summary for people."""

EndClass = Literal[
    "Completed", "Disruption", "Failure", "Suspended", "Cancelled", "NotStarted", "Released", "Blocked"
]
"""What ended an attempt: ``Disruption`` and ``Failure`` are counted, ``NotStarted`` (it never became whole),
``Blocked`` (it could not save, for its claim is full),
``Suspended``, ``Cancelled`` (the job's deadline) and ``Released`` (on-demand machines were given back: the budget
was used up, or there was room on spot machines again) are not."""

MAX_UNSETTLED = 20
MAX_COST_ATTEMPTS = 10
MAX_COST_NODES = 16
MAX_PREFERRED = 32


class AttemptNode(StatusModel):
    """A node that the attempt's pod ran on, with its price for an hour and its GPUs when the pod was bound.

    From ``start``, when kubelet took the pod in, to ``end``, when its last container ended, the machine is paid for.
    ``missed``: its pod was found to be gone, its end unseen.
    """

    index: int
    name: Word
    uid: Word
    price: Decimal | None = None
    gpus: int = 0
    start: Time | None = None
    end: Time | None = None
    missed: Time | None = None


class Terms(StatusModel):
    """What holds for the attempt from its opening on, whatever the pool's definition says later.

    Prices are a node's for an hour, ``pod_price`` is a pod's at the most. ``budget_seconds``: so long may each of
    its pods run, its grace and all, on what is left of ``onDemand.maxCost``.
    """

    capacity_type: Literal["Spot", "OnDemand"] = "Spot"
    gpus_per_pod: int = 0
    price: Decimal | None = None
    on_demand_price: Decimal | None = None
    pod_price: Decimal | None = None
    budget_seconds: int | None = None


class OnDemandRanks(StatusModel):
    """Ranks of an attempt that run on an on-demand pool, while the others are on the attempt's own, a spot pool."""

    ranks: Annotated[list[int], Field(max_length=64)]
    pool: Word
    terms: Terms


class Stop(StatusModel):
    """The decision to stop the attempt. It cannot be taken back; its deadline only tightens.

    ``class`` is what the attempt's end will count as; absent while a non-zero exit is not judged yet.
    """

    cause: Word
    cls: EndClass | None = Field(None, alias="class")
    message: Text = ""
    node: Word | None = None
    at: Time
    deadline: Time | None = None
    notice_ids: Annotated[list[Word], Field(max_length=64)] = []


class UndecidedExit(StatusModel):
    """A non-zero exit that is not judged yet: a peer's node may have died silently.

    ``leases_since``: the newest resourceVersion of the nodes' Leases when they were first looked at: a kubelet that has
    renewed its Lease since was alive after the exit, whatever its clock says.
    """

    index: int
    exit_code: int
    at: Time
    reason: Word = ""
    leases_since: int | None = None


class End(StatusModel):
    """How the attempt ended."""

    cls: EndClass = Field(alias="class")
    reason: Word
    message: Text = ""
    at: Time


class Current(StatusModel):
    """The newest attempt."""

    attempt: int
    pool: Word
    opened_at: Time
    generation: int | None = Field(None, description="The job's generation that its pods are made from.")
    replicas: int | None = Field(None, description="Pods of this attempt.")
    one_node: bool | None = Field(None, description="A ReadWriteOnce claim wants all its pods on one node.")
    node: Word | None = Field(None, description="That node, where it was chosen with the pool.")
    queue: Word | None = Field(None, description="The Kueue queue that its pods have joined.")
    gated: bool | None = Field(None, description="Its pods have had scheduling gates, as Kueue's.")
    admitted_at: Time | None = Field(None, description="When the last of these gates was seen to be gone.")
    avoid: Annotated[list[Word], Field(max_length=32)] = Field(
        [], description="Nodes that its pods keep off, because attempts failed there."
    )
    preferred: Annotated[list[Word], Field(max_length=MAX_PREFERRED)] = Field(
        [],
        description="Nodes whose room was counted on, by their label kubernetes.io/hostname: its pods prefer them.",
    )
    provisioned: Annotated[list[Word], Field(max_length=2)] = Field(
        [], description="Pools whose autoscaler had to bring nodes for it."
    )
    resume_claim: Word | None = Field(None, description="The claim that SPOT_RESUME_DIR is of.")
    started_at: Time | None = None
    running_at: Time | None = None
    terms: Terms | None = None
    on_demand: OnDemandRanks | None = Field(
        None, description="Ranks that run apart from the others, as onDemand.ranks named them."
    )
    unsaved_since: Time | None = Field(
        None, description="What it has done since then is not saved, as its pods have told."
    )
    nodes: Annotated[list[AttemptNode], Field(max_length=1000)] = []
    completed: Annotated[list[int], Field(max_length=1000)] = []
    stop: Stop | None = None
    undecided: Annotated[list[UndecidedExit], Field(max_length=1000)] = []
    end: End | None = None

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools that its pods are made in."""
        return (self.pool,) if self.on_demand is None else (self.pool, self.on_demand.pool)

    def is_apart(self, index: int) -> bool:
        """Whether the rank runs on the on-demand pool while others do not."""
        return self.on_demand is not None and index in self.on_demand.ranks

    def pool_of(self, index: int) -> str:
        """The pool that the rank's pod is made in."""
        return self.on_demand.pool if self.on_demand is not None and self.is_apart(index) else self.pool

    def terms_in(self, pool: str) -> Terms:
        """The terms of the ranks whose pods are made in that pool."""
        apart = self.on_demand
        return apart.terms if apart is not None and pool == apart.pool else self.terms or Terms()

    def terms_of(self, index: int) -> Terms:
        """The rank's terms; those of an attempt that an older version opened say nothing of prices."""
        if self.on_demand is not None and self.is_apart(index):
            return self.on_demand.terms
        return self.terms or Terms()


class Demotion(StatusModel):
    """A pool that is tried last for a while, and why; ``avoid``: not tried at all until then."""

    pool: Word
    until: Time
    reason: Word
    avoid: bool = False
    message: Text = ""
    times: int = 1


class PoolBackoff(StatusModel):
    """Setbacks of the job in a row on a pool: its machines were taken or lost, or did not take the gang in.

    ``next_try_at``: the pool is not tried before; absent where it may be tried at once. ``at``: of the last setback.
    """

    pool: Word
    setbacks: int
    reason: Word
    at: Time
    next_try_at: Time | None = None


class FullClaim(StatusModel):
    """The checkpoint claim was found full, so many ``times`` in a row, the last ``at``.

    ``uid`` and ``capacity`` of the claim, and the job's ``generation``, as they were then: what has changed since may
    have made room.
    """

    at: Time
    times: int
    uid: Word | None = None
    capacity: Word | None = None
    generation: int


class Fallback(StatusModel):
    """Since when no spot pool has had room for the job; and, on on-demand machines, since when one has again."""

    no_spot_since: Time | None = None
    spot_since: Time | None = None


class Bill(StatusModel):
    """What machines cost. Hours are a node's: a pod with half of a node's GPUs uses half an hour in an hour.

    ``on_demand_equivalent``: what the same hours would have cost on demand. ``unpriced_hours``: of machines whose
    price nobody said; they are in no sum of money.
    """

    spot_hours: Decimal = "0"
    on_demand_hours: Decimal = "0"
    spent: Decimal = "0"
    on_demand_spent: Decimal = "0"
    on_demand_equivalent: Decimal = "0"
    unpriced_hours: Decimal | None = None


class NodeCost(StatusModel):
    """What a machine of an attempt cost."""

    index: int
    name: Word
    price: Decimal | None = None
    hours: Decimal
    spent: Decimal | None = None
    on_demand_equivalent: Decimal | None = None


class AttemptCost(StatusModel):
    """What an attempt cost, with its first nodes, and the seconds of training that were lost with it."""

    attempt: int
    pool: Word
    capacity_type: Literal["Spot", "OnDemand"]
    hours: Decimal
    spent: Decimal
    on_demand_equivalent: Decimal
    saved_percent: int | None = None
    lost_seconds: int = 0
    nodes: Annotated[list[NodeCost], Field(max_length=MAX_COST_NODES)] = []


class Cost(Bill):
    """What the job has cost up to ``as_of``; ``ended`` is the part of attempts that are over.

    ``held``: money of ``onDemand.maxCost`` that on-demand machines may have used unseen. ``attempts``: the newest.
    """

    saved_percent: int | None = None
    held: Decimal | None = None
    as_of: Time
    ended: Bill = Bill()
    attempts: Annotated[list[AttemptCost], Field(max_length=MAX_COST_ATTEMPTS)] = []


class SuspectNode(StatusModel):
    """A machine on which attempts of this job have failed; avoided for a while once that has happened again."""

    name: Word
    uid: Word
    failures: int
    reason: Word
    at: Time
    avoided_until: Time | None = None


class CheckpointStatus(StatusModel):
    """The newest checkpoint that an ended attempt reported."""

    step: int
    time: Time | None = None


class Unsettled(StatusModel):
    """An attempt that trained from ``since`` to ``until`` and told nothing of its saves: its machines were lost."""

    attempt: int
    since: Time
    until: Time


class Interruption(StatusModel):
    """One line of the story: an attempt that was interrupted, and how the job came back."""

    attempt: int
    reason: Word
    notice_id: Word | None = None
    node: Word | None = None
    lost_uid: Word | None = Field(None, description="UID of the node that was lost without a notice.")
    pool: Word | None = None
    noticed_at: Time | None = None
    cordoned_at: Time | None = None
    deadline: Time | None = None
    stopped_at: Time | None = None
    saved_at: Time | None = None
    saved_step: int | None = None
    reached_step: int | None = None
    ended_at: Time | None = None
    recreated_at: Time | None = None
    recreated_pool: Word | None = None
    recreated_nodes: Annotated[list[Word], Field(max_length=16)] = []
    resumed_at: Time | None = None
    resumed_step: int | None = None


class SpotTrainingJobStatus(StatusModel):
    """The job's state."""

    observed_generation: int = 0
    phase: Phase = "Pending"
    ready: Word = ""
    step: int | None = None
    total_steps: int | None = None
    failures: int = 0
    disruptions: int = 0
    failure_streak: int = 0
    disruption_streak: int = 0
    start_streak: int = 0
    next_try_at: Time | None = Field(None, description="When it is tried again, at the latest.")
    next_try_pool: Word | None = Field(
        None,
        description="The pool that nextTryAt is of: others may be tried earlier. Absent: no pool is tried before.",
    )
    pool_backoffs: Annotated[list[PoolBackoff], Field(max_length=64)] = []
    paced_until: Time | None = Field(
        None, description="Each setback moves it on; far ahead, it holds the next try back on every pool."
    )
    full_claim: FullClaim | None = None
    priority: int = Field(
        0, description="Of the template's priorityClassName, as the API server resolves it."
    )
    proven_pools: Annotated[list[Word], Field(max_length=64)] = Field(
        [], description="Pools in which the program has got beyond its start."
    )
    demoted_pools: Annotated[list[Demotion], Field(max_length=64)] = []
    suspect_nodes: Annotated[list[SuspectNode], Field(max_length=32)] = []
    start_time: Time | None = None
    completion_time: Time | None = None
    current: Current | None = None
    checkpoint: CheckpointStatus | None = None
    extras: Annotated[dict[str, Word], Field(max_length=16)] = {}
    lost_seconds: int = Field(0, description="Training that was not saved when an attempt ended.")
    unsettled: Annotated[list[Unsettled], Field(max_length=MAX_UNSETTLED)] = Field(
        [],
        description="Attempts of which it is not known what was lost, before a later one tells what it resumed.",
    )
    cost: Cost | None = None
    fallback: Fallback | None = None
    timeline: Annotated[list[Interruption], Field(max_length=MAX_TIMELINE)] = []
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
