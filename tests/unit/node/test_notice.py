"""What the answers of a source add up to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot_training.node.notice import (
    FAR_SECONDS,
    OVER_SECONDS,
    Active,
    Answer,
    Limits,
    Nothing,
    Notice,
    Notices,
    Unknown,
    earliest,
    observe,
    recall,
    settle,
)

LIMITS = Limits(minimum=60, horizon=300)
NOW = 1_000_000.0


def notice(says: float | None, name: str = "") -> Notice:
    return Notice(name or f"eci-{says}", "reclaim", "eci", says)


def after(*answers: Answer, active: tuple[Active, ...] = ()) -> tuple[Active, ...]:
    """The active notices after these answers, one a second."""
    for second, answer in enumerate(answers):
        active = observe(active, answer, NOW + second, LIMITS)
    return active


@pytest.mark.parametrize(
    ("says", "deadline"),
    [
        (NOW + 60, NOW + 60),
        (NOW + 120.5, NOW + 120.5),
        (NOW + 300, NOW + 300),
        (NOW + 301, NOW + 300),
        (NOW + 8 * 3600, NOW + 300),
        (NOW, NOW),
        (NOW - 20, NOW - 20),
        (NOW - 8 * 3600, NOW + 60),
        (None, NOW + 60),
    ],
)
def test_a_deadline_is_what_the_source_can_mean(says: float | None, deadline: float) -> None:
    assert settle(notice(says), NOW, LIMITS) == deadline


@given(says=st.none() | st.floats(-1e12, 1e12), seen=st.floats(0, 4e9))
def test_settling_twice_changes_nothing(says: float | None, seen: float) -> None:
    once = settle(notice(says), seen, LIMITS)
    assert once is not None
    assert seen - LIMITS.horizon <= once <= seen + LIMITS.horizon
    assert settle(notice(once), seen, LIMITS) == once


SOON, LATER = notice(NOW + 60), notice(NOW + 120)


@pytest.mark.parametrize(
    ("answers", "ids"),
    [
        ([Nothing()], []),
        ([Unknown("503")], []),
        ([Notices((SOON,))], [SOON.id]),
        ([Notices((SOON,)), Nothing()], [SOON.id]),
        ([Notices((SOON,)), Nothing(), Nothing()], [SOON.id]),
        ([Notices((SOON,)), Nothing(), Nothing(), Nothing()], []),
        # Unknown is not nothing, and it breaks the row.
        ([Notices((SOON,)), *[Unknown("timeout")] * 10], [SOON.id]),
        ([Notices((SOON,)), Nothing(), Nothing(), Unknown("500"), Nothing(), Nothing()], [SOON.id]),
        # A notice that is listed again stands again.
        ([Notices((SOON,)), Nothing(), Nothing(), Notices((SOON,)), Nothing(), Nothing()], [SOON.id]),
        # Another time: both stand until the first has been missing three times.
        ([Notices((SOON,)), Notices((LATER,))], [SOON.id, LATER.id]),
        ([Notices((SOON,)), *[Notices((LATER,))] * 3], [LATER.id]),
        ([Notices((LATER,)), Notices((LATER, SOON))], [LATER.id, SOON.id]),
    ],
)
def test_only_three_explicit_answers_in_a_row_withdraw(answers: list[Answer], ids: list[str]) -> None:
    assert [active.notice.id for active in after(*answers)] == ids


def test_the_earliest_deadline_counts() -> None:
    assert earliest(()) is None
    both = earliest(after(Notices((LATER,)), Notices((LATER, SOON))))
    assert both is not None and both.notice == SOON


def test_a_notice_keeps_when_it_was_first_seen() -> None:
    (active,) = after(*[Notices((notice(None, "gcp-preempted"),))] * 30)
    assert (active.first_seen, active.deadline) == (NOW, NOW + 60)


def test_a_notice_that_did_not_come_true_is_over_even_if_the_source_is_silent() -> None:
    active = after(Notices((SOON,)))
    late = SOON.says or 0
    assert observe(active, Unknown("refused"), late + OVER_SECONDS - 1, LIMITS)
    assert not observe(active, Unknown("refused"), late + OVER_SECONDS + 1, LIMITS)
    assert not observe(active, Nothing(), late + OVER_SECONDS + 1, LIMITS)
    assert observe(active, Notices((SOON,)), late + OVER_SECONDS + 1, LIMITS)


def test_what_was_found_on_the_node_is_held_until_the_source_confirms_it_or_cannot() -> None:
    found = recall((), SOON, NOW - 10, NOW, LIMITS)
    assert [(one.held, one.first_seen, one.deadline) for one in found] == [(True, NOW - 10, NOW + 60)]
    assert [one.held for one in after(Notices((SOON,)), active=found)] == [False]
    assert [one.held for one in after(Unknown("refused"), active=found)] == [False]
    assert [one.held for one in after(Nothing(), Nothing(), active=found)] == [True]
    assert after(Nothing(), Nothing(), Nothing(), active=found) == ()


def test_what_was_found_on_the_node_tells_since_when_a_repeated_notice_stands() -> None:
    active = after(Notices((notice(None, "gcp-preempted"),)))
    (older,) = recall(active, notice(NOW + 20, "gcp-preempted"), NOW - 40, NOW, LIMITS)
    assert (older.first_seen, older.deadline, older.held) == (NOW - 40, NOW + 20, False)


def test_damaged_marks_mean_the_documented_minimum() -> None:
    (active,) = recall((), notice(None, "unnamed"), None, NOW, LIMITS)
    assert (active.first_seen, active.deadline) == (NOW, NOW + 60)


@pytest.mark.parametrize(
    ("says", "deadline"),
    [
        (NOW + 14 * 86_400, NOW + 14 * 86_400),
        (NOW + 2 * FAR_SECONDS, NOW + FAR_SECONDS),
        (NOW + 10, NOW + 10),
        # It could begin at any moment: its time is the earliest possible one.
        (NOW - 10, NOW + 60),
        (NOW - 86_400, NOW + 60),
        (None, NOW + 60),
    ],
)
def test_a_maintenance_may_be_weeks_ahead(says: float | None, deadline: float) -> None:
    assert settle(Notice("m", "maintenance", "aws", says), NOW, LIMITS) == deadline


def test_a_rebalance_has_no_deadline_and_is_never_over_by_time() -> None:
    (known,) = after(Notices((Notice("r", "rebalance", "aws", None),)))
    assert known.deadline is None
    assert observe((known,), Unknown("refused"), NOW + 1e9, LIMITS)
    assert after(*[Nothing()] * 3, active=(known,)) == ()


def test_a_notice_can_have_a_minimum_of_its_own() -> None:
    assert settle(Notice("h", "reclaim", "aws", None, minimum=0.0), NOW, LIMITS) == NOW


def test_a_partial_answer_withdraws_nothing_and_breaks_the_row() -> None:
    partial = Notices((LATER,), missing="HTTP status 500")
    answers = [Notices((SOON, LATER)), Notices((LATER,)), Notices((LATER,)), partial]
    assert [one.notice.id for one in after(*answers, *[Notices((LATER,))] * 2)] == [SOON.id, LATER.id]
    assert [one.notice.id for one in after(*answers, *[Notices((LATER,))] * 3)] == [LATER.id]


@pytest.mark.parametrize(
    ("kind", "first", "then", "deadline"),
    [
        # Put off, brought forward, and begun before its time, which Azure tells by taking the time away.
        ("maintenance", NOW + 9000, NOW + 90_000, NOW + 90_000),
        ("maintenance", NOW + 90_000, NOW + 9000, NOW + 9000),
        ("maintenance", NOW + 9000, None, NOW + 1 + 60),
        ("reclaim", NOW + 100, NOW + 70, NOW + 70),
        ("reclaim", NOW + 30, None, NOW + 30),
        ("reclaim", NOW + 250, None, NOW + 1 + 60),
    ],
)
def test_the_same_notice_with_another_time(
    kind: str, first: float, then: float | None, deadline: float
) -> None:
    states = [Notices((Notice("e", kind, "azure", says),)) for says in (first, then, then)]
    (known,) = after(*states)
    assert (known.first_seen, known.deadline) == (NOW, deadline)


def only(says: float | None, kind: str = "reclaim") -> Notice:
    return Notice(f"aws-{kind}-{says}", kind, "aws", says, single=True)


def test_a_source_that_tells_of_one_notice_only_restates_it() -> None:
    (known,) = after(*[Notices((only(NOW + 120 + second),)) for second in range(30)])
    # The first name and the first time stand; nothing is later for being said again.
    assert (known.notice.id, known.first_seen, known.deadline) == (only(NOW + 120).id, NOW, NOW + 120)
    (sooner,) = observe((known,), Notices((only(NOW + 90),)), NOW + 31, LIMITS)
    assert (sooner.notice.id, sooner.deadline) == (only(NOW + 120).id, NOW + 90)
    # Other kinds are other notices.
    both = observe((sooner,), Notices((only(NOW + 90), only(None, "rebalance"))), NOW + 32, LIMITS)
    assert [one.notice.kind for one in both] == ["reclaim", "rebalance"]


def test_what_was_found_on_the_node_is_what_the_source_restates() -> None:
    name = "aws-reclaim-from-before"
    found = recall((), Notice(name, "reclaim", "aws", NOW + 50), NOW - 10, NOW, LIMITS)
    (known,) = after(Notices((only(NOW + 120),)), active=found)
    assert (known.notice.id, known.held, known.first_seen, known.deadline) == (
        name,
        False,
        NOW - 10,
        NOW + 50,
    )
    (known,) = recall(
        after(Notices((only(NOW + 120),))), Notice(name, "reclaim", "aws", NOW + 50), NOW - 10, NOW, LIMITS
    )
    assert (known.notice.id, known.held, known.first_seen) == (name, False, NOW - 10)
