"""The status that a plan is working on, and what else it wants to happen.

One draft lives for one call of the planner. It is the only mutable thing there, and holds nothing that is not
in the plan which comes out of it.
"""

from dataclasses import dataclass
from typing import Any

from spot_training.api.pool import SpotPoolSpec
from spot_training.api.status import Current, Interruption, SpotTrainingJobStatus
from spot_training.api.times import format_time, parse_time
from spot_training.control import conditions
from spot_training.control.policies.demand import Request
from spot_training.control.world import Ask, Job, Node, Pod, Pool, World

MAX_TIMELINE = 20


@dataclass(frozen=True, slots=True)
class Story:
    """An Event for people: ``kubectl describe`` tells the job's story in them."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner wants: the status to be written, what to tell, when to look again, what to look up first.

    With ``asks`` the rest is void: look it up and plan again. ``request``: what the job needs a pool for.
    """

    status: SpotTrainingJobStatus
    stories: tuple[Story, ...] = ()
    wake_at: float | None = None
    asks: frozenset[Ask] = frozenset()
    request: Request | None = None


class Draft:
    """The status in the making."""

    def __init__(self, job: Job, world: World, now: float) -> None:
        self.job = job
        self.world = world
        self.now = now
        self.status = job.status
        self.stories: list[Story] = []
        self.asks: set[Ask] = set()
        self.request: Request | None = None
        self.why: tuple[str, str] = ("", "")
        self._wake: float | None = None

    @property
    def current(self) -> Current:
        """The newest attempt; only asked for where there is one."""
        if self.status.current is None:
            raise AssertionError("there is no attempt yet")
        return self.status.current

    @property
    def pool(self) -> Pool | None:
        """The pool of the newest attempt, if it still exists."""
        return self.world.pools.get(self.current.pool)

    def pool_of(self, index: int) -> Pool | None:
        """The pool of a rank of the newest attempt, if it still exists."""
        return self.world.pools.get(self.current.pool_of(index))

    def pool_on(self, node: str | None) -> str:
        """Name of the pool whose pods of the newest attempt are on the node; the attempt's own where none is."""
        index = next((ref.index for ref in self.current.nodes if ref.name == node), None)
        if index is None:
            index = next((pod.index for pod in self.pods().values() if node and pod.node == node), None)
        return self.current.pool if index is None else self.current.pool_of(index)

    def notice_seconds(self, node: str) -> int:
        """The notice that the pool gives whose node of the attempt that is."""
        default: int = SpotPoolSpec.model_fields["notice_seconds"].default
        pool = self.world.pools.get(self.pool_on(node))
        return pool.spec.notice_seconds if pool else default

    def pods(self) -> dict[int, Pod]:
        """The newest attempt's pods by index, the last seen state of those that were removed among them."""
        found: dict[int, Pod] = {}
        for pod in self.world.pods:
            if pod.attempt == self.current.attempt and not (pod.removed and pod.index in found):
                found[pod.index] = pod
        return found

    def node_of(self, pod: Pod) -> Node | None:
        """The node the pod is on, if it is there."""
        return self.world.nodes.get(pod.node) if pod.node else None

    def set(self, **fields: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def set_current(self, **fields: Any) -> None:
        """Change fields of the newest attempt."""
        self.set(current=self.current.model_copy(update=fields))

    def condition(self, type_: str, value: bool, reason: str, message: str = "") -> None:
        """Set a condition."""
        made = conditions.put(
            self.status.conditions, type_, value, reason, message, self.job.generation, self.now
        )
        self.set(conditions=made)

    def tell(self, reason: str, message: str, type_: str = "Normal") -> None:
        """Tell the user by an Event, once the status is written."""
        self.stories.append(Story(type_, reason, message))

    def wake(self, at: float | None) -> None:
        """Look again at that time at the latest; a time that has passed has been looked at now."""
        if at is not None and at > self.now and (self._wake is None or at < self._wake):
            self._wake = at

    def stamp(self, at: float | None = None) -> str:
        """A time for the status; now unless said."""
        return format_time(self.now if at is None else at)

    def record(self, attempt: int, **fields: Any) -> None:
        """Put fields into the timeline's entry of an attempt, if it has one."""
        timeline = [
            each.model_copy(update=fields) if each.attempt == attempt else each
            for each in self.status.timeline
        ]
        self.set(timeline=timeline)

    def record_return(self, **fields: Any) -> None:
        """Put into the newest interruption before this attempt how the job came back; the first return counts.

        Attempts that never started leave no entry. What an attempt reports of its start may come with its own end.
        """
        earlier = [each for each in self.status.timeline if each.attempt < self.current.attempt]
        if not earlier:
            return
        returned = earlier[-1].resumed_at is not None
        new = {
            name: value
            for name, value in fields.items()
            if not returned or getattr(earlier[-1], name) is None
        }
        self.record(earlier[-1].attempt, **new)

    def record_new(self, entry: Interruption) -> None:
        """Begin a timeline entry, or replace the attempt's."""
        others = [each for each in self.status.timeline if each.attempt != entry.attempt]
        self.set(timeline=[*others, entry][-MAX_TIMELINE:])

    def plan(self) -> Plan:
        """What came of it."""
        return Plan(self.status, tuple(self.stories), self._wake, frozenset(self.asks), self.request)


def moment(text: str | None) -> float | None:
    """Seconds of a time in the status, or None."""
    return parse_time(text) if text else None
