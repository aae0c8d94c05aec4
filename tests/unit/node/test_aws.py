"""AWS's instance metadata service: three questions, one token, and what adds up from partial answers."""

import json
from dataclasses import replace

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Answer, Nothing, Notice, Notices, Unknown, settle
from spot_training.node.sources.aws import LIMITS, aws
from tests.unit.node import wire
from tests.unit.node.metadata import NONSENSE, Service, ok, patience, service

TOKEN = "PUT /latest/api/token"
ACTION = "GET /latest/meta-data/spot/instance-action"
REBALANCE = "GET /latest/meta-data/events/recommendations/rebalance"
MAINTENANCE = "GET /latest/meta-data/events/maintenance/scheduled"

AT = parse_time("2017-09-18T08:22:00Z")
TERMINATE = '{"action":"terminate","time":"2017-09-18T08:22:00Z"}'
RECLAIM = Notice(f"aws-terminate-{int(AT)}", "reclaim", "aws", AT, single=True)
REBALANCED = Notice(f"aws-rebalance-{int(AT)}", "rebalance", "aws", None, single=True)
EVENT = {
    "NotBefore": "21 Jan 2019 09:00:43 GMT",
    "Code": "system-reboot",
    "Description": "scheduled reboot",
    "EventId": "instance-event-0d59937288b749b32",
    "NotAfter": "21 Jan 2019 09:17:23 GMT",
    "State": "active",
}
MAINTAINED = Notice(
    "aws-instance-event-0d59937288b749b32", "maintenance", "aws", parse_time("2019-01-21T09:00:43Z")
)


async def asked(cloud: Service, seconds: float = 5.0, **routes: wire.Answering) -> Answer:
    """The answer of a source that has a token and finds these answers, each within so many seconds."""
    names = {"action": ACTION, "rebalance": REBALANCE, "maintenance": MAINTENANCE}
    cloud.routes |= {TOKEN: ok("AQAEA==")} | {names[name]: answering for name, answering in routes.items()}
    return await replace(aws(cloud.address), answer_seconds=seconds).ask()


async def test_nothing_anywhere() -> None:
    async with service() as cloud:
        assert await asked(cloud) == Nothing()
    assert cloud.lines()[:2] == [TOKEN, ACTION]
    assert sorted(cloud.lines()[2:]) == [MAINTENANCE, REBALANCE]
    assert cloud.requests[0].values("X-aws-ec2-metadata-token-ttl-seconds") == ["21600"]
    assert [one.values("X-aws-ec2-metadata-token") for one in cloud.requests[1:]] == [["AQAEA=="]] * 3


@pytest.mark.parametrize("action", ["terminate", "stop"])
async def test_an_interruption_has_its_time(action: str) -> None:
    async with service() as cloud:
        answer = await asked(cloud, action=ok(TERMINATE.replace("terminate", action)))
    # The warnings have a fraction of a second then, which a busy machine may need for less.
    assert isinstance(answer, Notices)
    assert answer.notices == (replace(RECLAIM, id=f"aws-{action}-{int(AT)}"),)


async def test_a_hibernation_begins_at_once() -> None:
    async with service() as cloud:
        answer = await asked(cloud, action=ok(TERMINATE.replace("terminate", "hibernate")))
    assert isinstance(answer, Notices)
    assert settle(answer.notices[0], 1000.0, LIMITS) == 1000.0


async def test_warnings_are_kinds_of_their_own() -> None:
    done, canceled = EVENT | {"State": "completed"}, EVENT | {"State": "canceled"}
    async with service() as cloud:
        answer = await asked(
            cloud,
            rebalance=ok('{"noticeTime":"2017-09-18T08:22:00Z"}'),
            maintenance=ok(json.dumps([done, EVENT, canceled], indent=2)),
        )
        assert answer == Notices((REBALANCED, MAINTAINED))
        assert (
            await asked(cloud, rebalance=wire.whole("404 Not Found", b""), maintenance=ok("[]")) == Nothing()
        )


async def test_a_token_that_is_refused_is_replaced_and_shown_once() -> None:
    refused = wire.whole("401 Unauthorized", b"")
    async with service({TOKEN: ok("one")}) as cloud:
        source = aws(cloud.address)
        assert await source.ask() == Nothing()
        seen = len(cloud.requests)
        cloud.routes |= {TOKEN: ok("two"), ACTION: refused}
        assert await source.ask() == Unknown("HTTP status 401")
        assert cloud.lines()[seen : seen + 3] == [ACTION, TOKEN, ACTION]
        assert cloud.requests[seen + 2].values("X-aws-ec2-metadata-token") == ["two"]
        cloud.routes[ACTION] = ok(TERMINATE)
        assert await source.ask() == Notices((RECLAIM,))


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("question", ["action", "rebalance", "maintenance"])
async def test_nonsense_is_unknown_with_its_reason(question: str, name: str) -> None:
    answering, reason = NONSENSE[name]
    async with service() as cloud:
        answer = await asked(cloud, patience(reason), **{question: answering})
    assert isinstance(answer, Unknown), answer
    assert reason in answer.reason
    assert 0 < len(answer.reason) <= 200


@pytest.mark.parametrize(
    ("question", "body"),
    [
        ("action", '{"action":"explode","time":"2017-09-18T08:22:00Z"}'),
        ("action", '{"action":"terminate","time":"2017-09-18T08:22:00"}'),
        ("action", '{"action":"terminate","time":"18 Sep 2017"}'),
        ("action", '{"action":"terminate","time":1505722920}'),
        ("action", '{"action":"terminate"}'),
        ("action", '"terminate"'),
        ("action", "[]"),
        ("action", "null"),
        ("rebalance", "{}"),
        ("rebalance", '{"noticeTime":"soon"}'),
        ("maintenance", "{}"),
        ("maintenance", "[1]"),
        ("maintenance", "[{}]"),
        ("maintenance", json.dumps([EVENT | {"State": "perhaps"}])),
        ("maintenance", json.dumps([EVENT | {"NotBefore": "21 Jan 2019 09:00:43 CET"}])),
        ("maintenance", json.dumps([EVENT | {"NotBefore": "2019-01-21T09:00:43Z"}])),
    ],
)
async def test_another_form_is_unknown(question: str, body: str) -> None:
    async with service() as cloud:
        answer = await asked(cloud, 5.0, **{question: ok(body)})
    assert isinstance(answer, Unknown) and "not as documented" in answer.reason, answer


@pytest.mark.parametrize("broken", [wire.silent, wire.dripping, wire.whole("500 Oops", b"")])
async def test_a_reclamation_is_told_though_the_warnings_have_no_answer(broken: wire.Answering) -> None:
    async with service() as cloud:
        answer = await asked(cloud, 1.0, action=ok(TERMINATE), rebalance=broken, maintenance=broken)
    assert isinstance(answer, Notices)
    assert answer.notices == (RECLAIM,)
    assert answer.missing


async def test_a_warning_does_not_hide_that_the_reclamation_is_unknown() -> None:
    async with service() as cloud:
        answer = await asked(
            cloud, action=wire.whole("500 Oops", b""), rebalance=ok('{"noticeTime":"2017-09-18T08:22:00Z"}')
        )
    assert answer == Notices((REBALANCED,), missing="HTTP status 500")
