"""What each kind of notice asks for."""

import pytest

from spot_training.node.notice import Active, Notice
from spot_training.node.policy import NEAR_SECONDS, Policy, Response

NOW = 1_000_000.0
TAINT, DRAIN, IGNORE = Response.TAINT, Response.DRAIN, Response.IGNORE


def active(kind: str, deadline: float | None, name: str = "") -> Active:
    return Active(Notice(name or kind, kind, "aws", deadline), NOW, deadline)


RECLAIM = active("reclaim", NOW + 120)
REBALANCE = active("rebalance", None)
FAR = active("maintenance", NOW + 86_400)


@pytest.mark.parametrize(
    ("known", "policy", "response"),
    [
        (RECLAIM, Policy(), DRAIN),
        (RECLAIM, Policy(rebalance=IGNORE, maintenance=IGNORE), DRAIN),
        # What an earlier version of the agent, or a person, wrote on the Node.
        (active("terminate", NOW + 120), Policy(), DRAIN),
        (REBALANCE, Policy(), TAINT),
        (REBALANCE, Policy(rebalance=DRAIN), DRAIN),
        (REBALANCE, Policy(rebalance=IGNORE), IGNORE),
        (FAR, Policy(), TAINT),
        (FAR, Policy(maintenance=DRAIN), DRAIN),
        (FAR, Policy(maintenance=IGNORE), IGNORE),
        # Near, it is acted upon; ignored stays ignored.
        (active("maintenance", NOW + NEAR_SECONDS + 1), Policy(), TAINT),
        (active("maintenance", NOW + NEAR_SECONDS), Policy(), DRAIN),
        (active("maintenance", NOW - 5), Policy(), DRAIN),
        (active("maintenance", NOW + 5), Policy(maintenance=IGNORE), IGNORE),
    ],
)
def test_response_by_kind(known: Active, policy: Policy, response: Response) -> None:
    assert policy.response(known, NOW) is response


@pytest.mark.parametrize(
    ("known", "policy", "drain", "warn"),
    [
        ((), Policy(), None, None),
        ((REBALANCE,), Policy(), None, REBALANCE),
        ((REBALANCE, RECLAIM), Policy(), RECLAIM, None),
        ((FAR, REBALANCE), Policy(), None, FAR),
        ((FAR, REBALANCE), Policy(maintenance=IGNORE), None, REBALANCE),
        ((FAR, REBALANCE), Policy(rebalance=DRAIN), REBALANCE, None),
        # A deadline comes before none.
        ((REBALANCE, RECLAIM), Policy(rebalance=DRAIN), RECLAIM, None),
        (
            (RECLAIM, active("reclaim", NOW + 30, "sooner")),
            Policy(),
            active("reclaim", NOW + 30, "sooner"),
            None,
        ),
        ((REBALANCE, FAR), Policy(IGNORE, IGNORE), None, None),
    ],
)
def test_the_earliest_reclaim_wins_over_warnings(
    known: tuple[Active, ...], policy: Policy, drain: Active | None, warn: Active | None
) -> None:
    assert policy.to_drain_for(known, NOW) == drain
    assert policy.to_warn_of(known, NOW) == warn
