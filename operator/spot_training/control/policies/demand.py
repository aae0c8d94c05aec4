"""What jobs ask of placement, and what it answers. Plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from spot_training.api.job import PodSpec
from spot_training.control.world import Shape, Terms

Key = tuple[str, str]

USUAL_INTERVAL_SECONDS: Final = 1800
"""Between two checkpoints, where the job does not say."""

REASONS: Final = (
    "NoCapacity",
    "HeldForAnother",
    "PoolBackOff",
    "BudgetExhausted",
    "OnDemandLater",
    "BreakerOpen",
    "PoolAvoided",
    "TooDear",
    "NoPrice",
    "GangTooLarge",
    "SelectorConflict",
    "OnDemandNotAllowed",
    "PoolNotFound",
)
"""Why there is no pool for a job; the first that is true of one of its pools is the condition's reason."""


Refused = Mapping[str, tuple[str, str]]
"""Pools that are not for a job, with a word of ``REASONS`` and a sentence."""


@dataclass(frozen=True, slots=True)
class Apart:
    """So many pods of a gang go to an on-demand pool when the others go to a spot pool; ``refused``: to which not.

    ``what`` they are, for people.
    """

    pods: int
    what: str = ""
    refused: Refused = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a gang needs.

    ``pools``: names in the user's order, empty for every pool; ``last``: pools to try last of their kind for now, and
    ``late``: those of them that come behind on-demand ones, too; ``one_node``: all its pods on one node; ``volumes``:
    to which nodes its volumes can be attached; ``avoid``: names of nodes to keep off; ``queued``: the pods wait in a
    queue until there is room, so none is needed; ``refused``: pools that are not for the gang as a whole;
    ``ceiling``: nodes that cost more for an hour are not used; ``interval``: seconds between its checkpoints;
    ``priority``: of its pods; ``apart``: the part of it that is not to be on spot machines.
    """

    replicas: int
    pod: PodSpec
    pools: Sequence[str] = ()
    last: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    one_node: bool = False
    volumes: tuple[Terms, ...] = ()
    avoid: frozenset[str] = frozenset()
    queued: bool = False
    refused: Refused = field(default_factory=dict)
    ceiling: Decimal | None = None
    interval: int = USUAL_INTERVAL_SECONDS
    priority: int = 0
    apart: Apart | None = None

    def same(self, other: "Request") -> bool:
        """Whether what is decided for the other holds for this one: sentences may tell of another moment."""
        return self._in_words() == other._in_words()

    def _in_words(self) -> "Request":
        apart = self.apart and replace(self.apart, refused=_words(self.apart.refused))
        return replace(self, refused=_words(self.refused), apart=apart)

    @property
    def together(self) -> int:
        """How many of its pods must be on one node."""
        return self.replicas if self.one_node else 1


def _words(refused: Refused) -> Refused:
    return {name: (word, "") for name, (word, _) in refused.items()}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for a pool; ``shape``: of its pods, or of all of them together where they need one node."""

    key: Key
    uid: str
    created: float
    request: Request
    shape: Shape

    @property
    def pods(self) -> int:
        """How many of the shape it needs."""
        return 1 if self.request.one_node else self.request.replicas

    @property
    def order(self) -> tuple[int, float, Key]:
        """Whose turn it is: the least first. Creation has whole seconds; within one the names decide."""
        return -self.request.priority, self.created, self.key


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a pool was not chosen: one of ``REASONS``, and a sentence; ``pods``: for how many there was no room."""

    reason: str
    text: str
    pods: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for a job.

    ``pool``: None: it waits. ``beside``: the on-demand pool for the part that goes apart. ``refused``: of each pool
    that was tried why it was not chosen, in the order of trying; ``later``: pools that would have come after the
    chosen one; ``node``: the one node for all pods, where the gang needs one; ``laid``: the nodes whose room was
    counted on, those with least of it first; ``provisioned``: pools whose autoscaler has to make nodes for it;
    ``anywhere``: also on nodes that it wanted to keep off; ``wake_at``: when time alone may change the decision.
    """

    request: Request
    pool: str | None
    refused: Mapping[str, Verdict]
    later: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""
    node: str = ""
    laid: tuple[str, ...] = ()
    why: str = ""
    provisioned: tuple[str, ...] = ()
    anywhere: bool = False
    wake_at: float | None = None

    @property
    def reason(self) -> str:
        """Why there is no pool, in a word."""
        found = {verdict.reason for verdict in self.refused.values()}
        return next((reason for reason in REASONS if reason in found), "PoolNotFound")

    @property
    def kinds(self) -> tuple[object, ...]:
        """What makes the decision another than before; how much is free here and there does not."""
        return self.pool, tuple((name, verdict.reason) for name, verdict in self.refused.items())

    @property
    def message(self) -> str:
        """Every pool with its reason, for people; pools with the same reason together."""
        groups: dict[str, list[str]] = {}
        for name, verdict in self.refused.items():
            groups.setdefault(verdict.text, []).append(name)
        return "; ".join(
            f"{', '.join(names)}: {text}" if names[0] else text for text, names in groups.items()
        )

    @property
    def chosen(self) -> str:
        """The pool that was chosen, why, and of every other one why not."""
        made = f"pool {self.pool}"
        if self.beside and self.request.apart is not None:
            made += f", and {self.beside} for {self.request.apart.what}"
        if self.refused:
            made += f" (passed over: {self.message})"
        if self.why:
            made += f"; {self.why}"
        if self.later:
            made += f"; after it: {', '.join(name + why for name, why in self.later.items())}"
        return made

    def shares(self, pods: int) -> dict[str, int]:
        """How many of the gang's ``pods`` go to each pool."""
        if self.pool is None:
            return {}
        apart = self.request.apart.pods if self.beside and self.request.apart is not None else 0
        return {self.pool: pods - apart} | ({self.beside: apart} if apart else {})
