"""What is told outside the cluster: the facts, and bodies that are filled in with them."""

import json

import pytest

from spot_training.node.message import DEFAULT_BODY, FACTS, Message, Occasion, facts, fill, parse_body

NOW = 1_775_624_400.0  # 2026-04-08T05:00:00Z
MESSAGE = Message(Occasion.NOTICE, "this node is taken away", "eci-1", "reclaim", "eci", NOW + 58.9)


def test_the_facts_of_a_notice() -> None:
    given = facts(MESSAGE, "gpu-1", "prod", NOW)
    assert given == {
        "cluster": "prod",
        "deadline": "2026-04-08T05:00:58.900Z",
        "kind": "reclaim",
        "node": "gpu-1",
        "notice": "eci-1",
        "occasion": "notice",
        "pods_left": "",
        "seconds_left": "58",
        "source": "eci",
        "text": "Node gpu-1, cluster prod: this node is taken away (notice eci-1)",
        "time": "2026-04-08T05:00:00.000Z",
    }
    assert tuple(given) == FACTS


def test_what_does_not_apply_is_empty_and_what_is_over_is_below_zero() -> None:
    rebalance = Message(Occasion.WARNING, "soon, perhaps", "aws-1", "rebalance", "aws")
    given = facts(rebalance, "gpu-1", "", NOW)
    assert (given["deadline"], given["seconds_left"], given["cluster"]) == ("", "", "")
    assert given["text"] == "Node gpu-1: soon, perhaps (notice aws-1)"
    late = Message(Occasion.DEADLINE_PASSED, "late", "eci-1", "reclaim", "eci", NOW - 3, pods_left=2)
    given = facts(late, "gpu-1", "", NOW)
    assert (given["seconds_left"], given["pods_left"]) == ("-3", "2")


def test_the_default_body_is_what_slack_takes() -> None:
    given = facts(MESSAGE, "gpu-1", "", NOW)
    assert fill(parse_body(DEFAULT_BODY), given) == {"text": given["text"]}


def test_a_body_is_filled_in_at_every_depth_and_nothing_breaks_its_form() -> None:
    body = parse_body(
        '{"a": ["$node", {"b": "${kind}s cost $$5"}], "n": 5, "t": true, "z": null, "$node": "key"}'
    )
    given = dict.fromkeys(FACTS, "") | {"node": '"}, "x": "\\', "kind": "$notice"}
    filled = fill(body, given)
    assert json.loads(json.dumps(filled)) == {
        "a": ['"}, "x": "\\', {"b": "$notices cost $5"}],
        "n": 5,
        "t": True,
        "z": None,
        "$node": "key",
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the webhook's body is not JSON"),
        ("{", "the webhook's body is not JSON"),
        ('"$text"', 'is not a JSON object such as {"text": "$text"}'),
        ("[]", "is not a JSON object"),
        ('{"text": "$50"}', r"body.text: a $ in '$50' begins no name; write $$ for the sign itself"),
        ('{"a": [1, {"b": "$"}]}', "body.a[1].b: a $ in '$' begins no name"),
        ('{"text": "$hostname is gone"}', "body.text: $hostname is not known; known are cluster, deadline,"),
        ('{"text": "${Node}"}', "$Node is not known"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_body_is_refused_with_what_to_do(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_body(text)
    assert complaint in str(caught.value)
