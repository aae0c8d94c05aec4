"""Alibaba and Tencent: a time or 404, over the network, with a token and with a zone that is not said."""

from dataclasses import replace

import pytest

from spot_training.api.times import parse_time
from spot_training.node.notice import Nothing, Notice, Notices, Unknown
from spot_training.node.sources.alibaba import alibaba
from spot_training.node.sources.tencent import parse_local_time, tencent
from tests.unit.node.metadata import HTML, NONSENSE, ok, patience, redirect, service
from tests.unit.node.wire import Answering, whole

ALIBABA = "GET /latest/meta-data/instance/spot/termination-time"
ALIBABA_TOKEN = "PUT /latest/api/token"
TENCENT = "GET /latest/meta-data/spot/termination-time"
UNAUTHORIZED = whole("401 Unauthorized", b"")


async def test_alibaba_nothing_then_a_time() -> None:
    async with service({ALIBABA_TOKEN: ok("AAA==")}) as cloud:
        source = alibaba(cloud.address)
        assert await source.ask() == Nothing()
        cloud.routes[ALIBABA] = ok("2015-01-05T18:02:00Z")
        at = parse_time("2015-01-05T18:02:00Z")
        assert await source.ask() == Notices((Notice(f"alibaba-{int(at)}", "reclaim", "alibaba", at),))
    assert cloud.lines() == [ALIBABA_TOKEN, ALIBABA, ALIBABA]
    put, first, second = cloud.requests
    assert put.values("X-aliyun-ecs-metadata-token-ttl-seconds") == ["21600"]
    assert (
        first.values("X-aliyun-ecs-metadata-token")
        == ["AAA=="]
        == second.values("X-aliyun-ecs-metadata-token")
    )


async def test_a_token_that_is_refused_is_replaced_and_shown_once() -> None:
    async with service({ALIBABA_TOKEN: ok("one")}) as cloud:
        source = alibaba(cloud.address)
        assert await source.ask() == Nothing()
        cloud.routes |= {ALIBABA_TOKEN: ok("two"), ALIBABA: UNAUTHORIZED}
        answer = await source.ask()
        assert answer == Unknown("HTTP status 401")
        assert cloud.lines()[2:] == [ALIBABA, ALIBABA_TOKEN, ALIBABA]
        assert cloud.requests[-1].values("X-aliyun-ecs-metadata-token") == ["two"]
        del cloud.routes[ALIBABA]
        assert await source.ask() == Nothing()


async def test_a_token_is_renewed_before_its_life_is_over() -> None:
    async with service({ALIBABA_TOKEN: ok("one")}) as cloud:
        source = alibaba(cloud.address)
        assert source.token is not None
        await source.ask()
        source.token._until = 0
        await source.ask()
    assert cloud.lines() == [ALIBABA_TOKEN, ALIBABA] * 2


@pytest.mark.parametrize(
    "token",
    [HTML, ok(""), ok("a\r\nX: y"), ok("ä"), ok("x" * 1000), whole("403 Forbidden", b""), redirect("/")],
)
async def test_without_a_token_nothing_is_known(token: Answering) -> None:
    async with service({ALIBABA_TOKEN: token, ALIBABA: ok("2015-01-05T18:02:00Z")}) as cloud:
        answer = await alibaba(cloud.address).ask()
    assert isinstance(answer, Unknown), answer
    assert ALIBABA not in cloud.lines()


async def test_tencent_means_utc_plus_8() -> None:
    async with service() as cloud:
        source = tencent(cloud.address)
        assert await source.ask() == Nothing()
        cloud.routes[TENCENT] = ok("2018-08-18 12:05:33")
        at = parse_time("2018-08-18T04:05:33Z")
        assert await source.ask() == Notices((Notice(f"tencent-{int(at)}", "reclaim", "tencent", at),))


@pytest.mark.parametrize(
    "text", ["", "soon", "2018-08-18", "2018-08-18T12:05:33Z", "2018-08-18 12:05:33+08:00"]
)
def test_tencent_makes_no_time_up(text: str) -> None:
    with pytest.raises(ValueError):
        parse_local_time(text)


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_unknown_with_its_reason(name: str) -> None:
    answering, reason = NONSENSE[name]
    async with service({ALIBABA_TOKEN: ok("t"), ALIBABA: answering, TENCENT: answering}) as cloud:
        for source in (alibaba(cloud.address), tencent(cloud.address)):
            answer = await replace(source, answer_seconds=patience(reason)).ask()
            assert isinstance(answer, Unknown), answer
            assert reason in answer.reason
            assert 0 < len(answer.reason) <= 200


@pytest.mark.parametrize(
    "text", ["2015-01-05T18:02:00", "2015-01-05 18:02", "null", '"2015-01-05T18:02:00Z"']
)
async def test_alibaba_in_another_form_is_unknown(text: str) -> None:
    async with service({ALIBABA_TOKEN: ok("t"), ALIBABA: ok(text)}) as cloud:
        answer = await alibaba(cloud.address).ask()
    assert isinstance(answer, Unknown) and "not a time" in answer.reason, answer


async def test_nobody_there_is_no_dead_socket() -> None:
    async with service() as cloud:
        pass
    answer = await tencent(cloud.address).ask()
    assert isinstance(answer, Unknown) and "cannot connect" in answer.reason
    assert not answer.unconnectable
