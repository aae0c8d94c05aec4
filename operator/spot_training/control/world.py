"""The world of one job, as plain data: what the planner sees and nothing else.

Times are seconds since the epoch in the API server's clock.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.pool import SpotPoolSpec, SpotPoolStatus
from spot_training.api.status import SpotTrainingJobStatus

if TYPE_CHECKING:
    from spot_training.control.policies.demand import Choice


@dataclass(frozen=True, slots=True)
class Job:
    """A SpotTrainingJob. ``queue`` and ``priority_class``: what its Kueue labels say, or empty."""

    namespace: str
    name: str
    uid: str
    created: float
    generation: int
    spec: SpotTrainingJobSpec
    status: SpotTrainingJobStatus
    deleting: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    queue: str = ""
    priority_class: str = ""
    version: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def finished(self) -> bool:
        """Whether the job has ended for good."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def claim(self) -> str:
        """Name of the claim that holds the checkpoints."""
        return self.spec.checkpoint.claim_name or template_claim(self.name)

    @property
    def replicas(self) -> int:
        """Pods of the open attempt, as many as it was opened with; else as many as the next one will have."""
        current = self.status.current
        return current.replicas if current and self.open_attempt and current.replicas else self.spec.replicas

    @property
    def open_attempt(self) -> bool:
        """Whether an attempt is open: pods of it may run."""
        return self.status.current is not None and self.status.current.end is None


def template_claim(job: str) -> str:
    """Name of the claim that is made from the ``claimTemplate`` of the job of that name."""
    return f"{job}-checkpoint"


@dataclass(frozen=True, slots=True)
class Report:
    """What the training code says of itself in its termination message; unknown fields are None.

    ``volume_full``: there was no room for the last checkpoint that it wanted to save; ``resumed_time``: when the one
    was saved that it went on from.
    """

    reason: str = ""
    step: int | None = None
    total_steps: int | None = None
    checkpoint_step: int | None = None
    checkpoint_time: float | None = None
    resumed_step: int | None = None
    extras: Mapping[str, str] = field(default_factory=dict)
    volume_full: bool = False
    resumed_time: float | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How container 0 ended; ``message``: the runtime's words where it could not even start it."""

    code: int
    reason: str
    at: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, trimmed. ``job_uid`` is empty for pods that are no job's: they only use what they request, but for those
    that keep a node of ``pool`` warm, which use nothing; ``made_from`` tells of these what they were made from.

    ``accepted_at``: when its kubelet took it in; ``ended_at``: when the last of its containers ended;
    ``budget_seconds``: kubelet ends it so long after it was accepted, for want of money; ``removed`` is the last
    that was seen of it, and ``unseen``: not its end.
    """

    namespace: str
    name: str
    uid: str
    node: str = ""
    phase: str = "Pending"
    created: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)
    job: str = ""
    claim: str = ""
    job_uid: str = ""
    pool: str = ""
    made_from: str = ""
    attempt: int = 0
    index: int = 0
    deleting: bool = False
    kill_at: float | None = None
    grace: int = 30
    accepted_at: float | None = None
    started_at: float | None = None
    running: bool = False
    ended: bool = False
    ended_at: float | None = None
    budget_seconds: int | None = None
    gated: bool = False
    exit: Exit | None = None
    report: Report | None = None
    status_reason: str = ""
    disruption: str = ""
    trouble: str = ""
    removed: bool = False
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """The marks on a node that say it will be taken. ``deadline`` is None where nobody said when."""

    kind: str
    id: str
    source: str
    deadline: float | None = None
    noticed_at: float | None = None
    marked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node, trimmed to what decides; heartbeats do not change it."""

    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    ready_since: float = 0.0
    schedulable: bool = True
    taints: tuple[Taint, ...] = ()
    capacity: Mapping[str, int] = field(default_factory=dict)
    notice: Notice | None = None
    out_of_service: bool = False
    price: Decimal | None = None
    price_trouble: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """A SpotPool."""

    name: str
    spec: SpotPoolSpec
    generation: int = 0
    status: SpotPoolStatus = field(default_factory=SpotPoolStatus)
    uid: str = ""
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a node selector term; ``field``: of the Node's field ``key``, not of its label."""

    key: str
    operator: str
    values: tuple[str, ...] = ()
    field: bool = False


Terms = tuple[tuple[Requirement, ...], ...]
"""Node selector terms: one of them must hold, all requirements of a term must. None: any node."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim. ``volume``: name of its PersistentVolume, empty while it is not bound; ``made_for``:
    the job from whose claimTemplate it was made, or empty; ``capacity``: what its volume holds, as a quantity.
    """

    name: str
    uid: str
    phase: str = "Bound"
    modes: tuple[str, ...] = ("ReadWriteMany",)
    deleting: bool = False
    owner_uids: tuple[str, ...] = ()
    volume: str = ""
    made_for: str = ""
    capacity: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What ``checkpoint.resumeFrom`` names: the job (``known``: whether it is there), and the claim of its checkpoints.

    ``user``: the live job that uses that claim now, or empty.
    """

    job: str
    known: bool
    claim_name: str
    claim: Claim | None = None
    user: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server refused pod 0 in a dry run. ``temporary`` where another moment may differ (quota)."""

    message: str
    temporary: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """The API server would take pod 0; ``priority``: what it resolves the template's priorityClassName to."""

    priority: int = 0


Toleration = tuple[str, str, str, str]
"""Key, operator, value, effect; empty where nothing is said."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of pod, as placement sees it.

    ``needs`` by resource; ``volumes``: where its volumes can be attached; ``ceiling``: nodes that cost more for an
    hour are not used.
    """

    needs: tuple[tuple[str, int], ...]
    selector: tuple[tuple[str, str], ...] = ()
    affinity: Terms = ()
    tolerations: tuple[Toleration, ...] = ()
    volumes: tuple[Terms, ...] = ()
    ceiling: Decimal | None = None

    def __hash__(self) -> int:
        # Asked for a hundred thousand times in a pass; the rest seldom differs.
        return hash(self.needs)

    @property
    def where(self) -> tuple[object, ...]:
        """What decides which nodes take it, apart from room."""
        return self.selector, self.affinity, self.tolerations, self.volumes, self.ceiling

    @property
    def confined(self) -> bool:
        """Whether labels decide which nodes take it."""
        return bool(self.selector or self.affinity or self.volumes)

    def need(self, resource: str) -> int:
        """How much a pod asks of that resource."""
        return next((amount for name, amount in self.needs if name == resource), 0)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that an opened attempt will use although its pods are not bound yet; ``node``: where all will, if known;
    ``avoid``: names of nodes that they keep off; ``awaited``: the pool's autoscaler has to bring nodes for it.
    """

    pool: str
    shape: Shape
    pods: int
    node: str = ""
    avoid: frozenset[str] = frozenset()
    awaited: bool = False


class Ask(Enum):
    """What the planner wants looked up in the API server itself before it decides."""

    LIVE_PODS = "a live list of the job's pods: a cached one may lag behind"
    LEASES = "the Leases of the gang's nodes"
    DRY_RUN = "a strict dry run of pod 0"
    EVENTS = "the Events of the pods that do not start"
    PLACEMENT = "which pool takes the next attempt: decided for all jobs that wait, not for one"
    ROOM = "which pool would take the gang now, beside what it has"
    VOLUMES = "the volumes behind the job's claims: to which nodes they can be attached"


@dataclass(frozen=True, slots=True)
class World:
    """All that a decision about one job depends on.

    ``pods``: the job's, also those removed lately; ``members``: the nodes of each pool; ``silent``: how many of these
    are not ready; ``prices``: of a node for an hour, by pool, where the price file says so; ``leases`` and
    ``renewals``: when, by its own clock, each node last renewed its Lease, and the Lease's resourceVersion, where asked
    for; ``agents``: names of nodes with a ready agent; ``dry_run`` and ``choice`` (what placement decided): where asked
    for; ``volumes``: by name, the nodes to which a PersistentVolume can be attached, as far as looked up; ``events``:
    by pod UID, what its Events complain of, where asked for; ``obstacle``: why the last try to create what is needed
    failed; ``refused``: the attempt of which the API server lets something not be made, or 0; ``refused_as``: our word
    for that.
    """

    pods: tuple[Pod, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    members: Mapping[str, Mapping[str, Node]] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    claim: Claim | None = None
    claim_user: str = ""
    source: Source | None = None
    prices: Mapping[str, Decimal] = field(default_factory=dict)
    agents: Set[str] = frozenset()
    live: bool = False
    leases: Mapping[str, float] | None = None
    renewals: Mapping[str, int] | None = None
    dry_run: Accepted | Refusal | None = None
    choice: "Choice | None" = None
    volumes: Mapping[str, Terms] = field(default_factory=dict)
    events: Mapping[str, str] | None = None
    obstacle: str = ""
    refused: int = 0
    refused_as: str = "PodsRefused"
