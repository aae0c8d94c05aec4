"""Who leads: the table of decisions, and that never two act at once, however clocks differ and requests dawdle."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spot_training.control.leader import (
    Acquire,
    Decision,
    Lost,
    Record,
    Renew,
    Timing,
    View,
    Wait,
    decide,
    holding,
    observe,
    read_record,
    released,
)

TIMING = Timing(lease=8, deadline=5.0, renew=2.0, retry=1.0)
MINE = Record("me", 8.0, "then", "now", 3)
OTHER = Record("other", 8.0, "then", "now", 3)
FREE = Record("", 1.0, "then", "now", 3)


@pytest.mark.parametrize(
    ("record", "seen_for", "renewed_ago", "expected"),
    [
        # A standby.
        (None, 0.0, None, Acquire()),
        (FREE, 0.0, None, Acquire()),
        (MINE, 0.0, None, Acquire()),
        (OTHER, 0.0, None, Wait(1.0)),
        (OTHER, 7.5, None, Wait(0.5)),
        (OTHER, 8.0, None, Acquire()),
        (replace(OTHER, duration=60.0), 59.5, None, Wait(0.5)),
        (Record(), 0.0, None, Acquire()),
        # The leader.
        (MINE, 0.0, 2.0, Renew()),
        (MINE, 0.0, 4.99, Renew()),
        (MINE, 0.0, 5.0, Lost("the Lease could not be renewed for 5 s")),
        (FREE, 0.0, 2.0, Renew()),
        (None, 0.0, 2.0, Renew()),
        (OTHER, 0.0, 2.0, Lost("other holds the Lease")),
        (OTHER, 100.0, 2.0, Lost("other holds the Lease")),
    ],
)
def test_what_to_do(
    record: Record | None, seen_for: float, renewed_ago: float | None, expected: Decision
) -> None:
    now = 1000.0
    renewed = None if renewed_ago is None else now - renewed_ago
    assert decide("me", View(record, now - seen_for), renewed, now, TIMING) == expected


def test_the_same_content_has_been_seen_since_the_first_time() -> None:
    first = observe(None, OTHER, 10.0)
    assert observe(first, replace(OTHER), 17.0).since == 10.0
    assert observe(first, replace(OTHER, renewed="later"), 17.0).since == 17.0
    assert observe(first, None, 17.0) == View(None, 17.0)


def test_taking_over_is_a_transition_and_renewing_is_none() -> None:
    new = holding("me", None, 0.0, TIMING)
    assert new == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 8,
        "acquireTime": "1970-01-01T00:00:00.000000Z",
        "renewTime": "1970-01-01T00:00:00.000000Z",
        "leaseTransitions": 0,
    }
    again = holding("me", read_record(new), 2.0, TIMING)
    assert (again["acquireTime"], again["leaseTransitions"]) == (new["acquireTime"], 0)
    assert again["renewTime"] == "1970-01-01T00:00:02.000000Z"
    taken = holding("you", read_record(again), 20.0, TIMING)
    assert (taken["acquireTime"], taken["leaseTransitions"]) == ("1970-01-01T00:00:20.000000Z", 1)
    given_back = released(read_record(taken), 21.0)
    assert (given_back["holderIdentity"], given_back["leaseTransitions"]) == ("", 1)
    assert holding("me", read_record(given_back), 22.0, TIMING)["leaseTransitions"] == 2


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": None, "leaseDurationSeconds": None}])
def test_an_empty_lease_is_held_by_nobody(spec: dict[str, Any] | None) -> None:
    assert read_record(spec) == Record()


def test_the_holder_stops_before_another_may_begin() -> None:
    timing = Timing()
    assert timing.retry < timing.renew < timing.deadline / 2
    assert timing.deadline < timing.lease - 2 * timing.retry


@dataclass
class Candidate:
    """One process: its clock is ahead of the others' by `skew`; it knows what it has read and what it has sent."""

    name: str
    skew: float
    view: View
    version: int = 0
    renewed: float | None = None
    under_way: tuple[float, int, dict[str, Any]] | None = None
    """A write that was sent: when, over which version, what."""


class Candidates(RuleBasedStateMachine):
    """Three candidates and a Lease; each may stop for any time between any two of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 5000.0
        self.version = 0
        self.record: Record | None = None
        self.candidates = [
            Candidate(name, skew, View(None, self.now + skew))
            for name, skew in (("a", 0.0), ("b", 3600.0), ("c", -4000.0))
        ]

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.5, 5.0, 8.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(who=st.integers(0, 2))
    def reads(self, who: int) -> None:
        self.read(self.candidates[who])

    def read(self, one: Candidate) -> None:
        one.view = observe(one.view, self.record, self.now + one.skew)
        one.version = self.version

    @rule(who=st.integers(0, 2))
    def decides_and_sends(self, who: int) -> None:
        one = self.candidates[who]
        now = self.now + one.skew
        decision = decide(one.name, one.view, one.renewed, now, TIMING)
        if isinstance(decision, Lost):
            one.renewed = None
        if isinstance(decision, Acquire | Renew) and one.under_way is None:
            made = holding(one.name, one.view.record, self.now, TIMING)
            one.under_way = (now, one.version, made)

    @rule(who=st.integers(0, 2), answered=st.booleans())
    def what_was_sent_arrives(self, who: int, answered: bool) -> None:
        one = self.candidates[who]
        if one.under_way is None:
            return
        sent, over, spec = one.under_way
        one.under_way = None
        if over != self.version:
            return
        self.version += 1
        self.record = read_record(spec)
        if answered:
            self.read(one)
            one.renewed = sent

    @rule(who=st.integers(0, 2))
    def looks_in_one_go(self, who: int) -> None:
        self.reads(who)
        self.decides_and_sends(who)
        self.what_was_sent_arrives(who, answered=True)

    @precondition(lambda self: any(self.acting(each) for each in self.candidates))
    @rule()
    def the_leader_leaves(self) -> None:
        (one,) = [each for each in self.candidates if self.acting(each)]
        one.renewed = None
        if self.record is not None and self.record.holder == one.name and one.under_way is None:
            self.version += 1
            self.record = read_record(released(self.record, self.now))
            self.read(one)

    def acting(self, one: Candidate) -> bool:
        return one.renewed is not None and self.now + one.skew < one.renewed + TIMING.deadline

    @invariant()
    def at_most_one_acts(self) -> None:
        acting = [each.name for each in self.candidates if self.acting(each)]
        assert len(acting) <= 1, acting

    def teardown(self) -> None:
        """Whatever has happened: with all but one silent, that one leads in the time of a lease."""
        one = self.candidates[0]
        for _ in range(TIMING.lease + 2):
            self.looks_in_one_go(0)
            if self.acting(one):
                return
            self.now += TIMING.retry
        raise AssertionError(f"nobody leads: {self.record}, {one}")


TestCandidates = Candidates.TestCase
TestCandidates.settings = settings(max_examples=300, stateful_step_count=40)
