"""Leading by a Lease of a real (small) API server: taking, keeping, losing and giving it back."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from aiohttp import web

from spot_training.cluster.client import Client
from spot_training.control.election import Election, LeaderClient, NotLeadingError
from spot_training.control.leader import Timing
from spot_training.control.loops import run_apart
from tests.unit.control.objects import Json
from tests.unit.control.server import Server, refusal, serving

TIMING = Timing(lease=1, deadline=0.6, renew=0.05, retry=0.02)
LEASES = "/apis/coordination.k8s.io/v1/namespaces/spot/leases"


async def until(what: str, happened: Callable[[], bool], seen: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(20):
            while not happened():  # noqa: ASYNC110 - any condition, not an event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what}: did not come; seen last: {seen()}") from None


class Candidate:
    """A process: its election, how often it has led, and whether it ever did while one of `others` could write."""

    def __init__(self, client: Client, name: str, others: list["Candidate"]) -> None:
        self.name = name
        self.others = others
        self.together = False
        self.stopped = 0.0
        """Seconds for which the process has been frozen: its clock went on, it did not."""
        self.election = Election(client, "spot", "leader", name, TIMING, self.clock)
        self.acting = False
        self.terms = 0
        self.failure: Exception | None = None

    def clock(self) -> float:
        return asyncio.get_running_loop().time() + self.stopped

    async def lead(self) -> None:
        self.terms += 1
        self.acting = True
        self.together |= any(each.election.leading for each in self.others if each is not self)
        try:
            if self.failure is not None:
                raise self.failure
            await asyncio.Event().wait()
        finally:
            self.acting = False

    def __repr__(self) -> str:
        return f"{self.name}: leading {self.election.leading}, acting {self.acting}, terms {self.terms}"


class Field:
    """The API server and the candidates."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server, self.client = server, client
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.candidates: list[Candidate] = []

    def enter(self, name: str, client: Client | None = None, ahead: float = 0.0) -> Candidate:
        """A new process with that name; its clock may be ahead of the others'."""
        made = Candidate(client or self.client, name, self.candidates)
        made.stopped = ahead
        self.candidates.append(made)
        self.tasks[name] = asyncio.create_task(made.election.run(made.lead))
        return made

    async def leave(self, name: str) -> None:
        """As at SIGTERM."""
        self.tasks[name].cancel()
        with suppress(asyncio.CancelledError):
            await self.tasks[name]

    @property
    def lease(self) -> Json:
        spec: Json = self.server.get("leases", "leader", "spot")["spec"]
        return spec

    async def until(self, what: str, happened: Callable[[], bool]) -> None:
        await until(what, happened, lambda: (self.server.objects["leases"], self.tasks))


@pytest.fixture
async def field() -> AsyncIterator[Field]:
    async with serving() as server, Client(server.connection) as client:
        made = Field(server, client)
        yield made
        for name in made.tasks:
            await made.leave(name)
        assert not any(each.together for each in made.candidates), made.candidates


async def test_the_first_leads_the_second_stands_by_and_takes_over_when_the_first_leaves(
    field: Field,
) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    assert (field.lease["holderIdentity"], field.lease["leaseTransitions"]) == ("one", 0)
    two = field.enter("two")
    renewed = field.lease["renewTime"]
    await field.until("one renews", lambda: bool(field.lease["renewTime"] != renewed))
    assert (one.terms, two.terms) == (1, 0)
    await field.leave("one")
    assert not one.acting
    assert field.lease["holderIdentity"] in ("", "two"), "given back, not left to expire"
    await field.until("two leads", lambda: two.acting)
    assert (field.lease["holderIdentity"], field.lease["leaseTransitions"]) == ("two", 1)


async def test_what_others_put_into_the_lease_stays(field: Field) -> None:
    metadata = {"name": "leader", "namespace": "spot", "labels": {"theirs": "1"}}
    field.server.put("leases", {"metadata": metadata, "spec": {"strategy": "OldestEmulationVersion"}})
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    assert field.lease["strategy"] == "OldestEmulationVersion"
    assert field.server.get("leases", "leader", "spot")["metadata"]["labels"] == {"theirs": "1"}


async def test_a_leader_that_is_silent_is_replaced_when_its_time_is_over(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    # Nothing of it comes through any more.
    field.server.fault = only_from("two")
    async with Client(field.server.connection, user_agent="two") as other:
        two = field.enter("two", other)
        await field.until("two leads", lambda: two.acting)
        assert not one.election.leading
        assert field.lease["leaseTransitions"] == 1
        await field.leave("two")


def only_from(agent: str) -> Callable[[web.Request], web.StreamResponse | None]:
    def fault(request: web.Request) -> web.StreamResponse | None:
        return None if request.headers["User-Agent"] == agent else refusal(503, "Unavailable", "down")

    return fault


class Busy(Candidate):
    """A process with a thread for its work, whose loop stands still as long as it leads, until `done` is set."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, "busy", [])
        self.done = threading.Event()

    async def lead(self) -> None:
        self.terms += 1
        self.acting = True
        try:
            assert self.done.wait(20), "nobody has let it go on"
            await asyncio.Event().wait()
        finally:
            self.acting = False

    async def run(self) -> None:
        await run_apart("work", lambda: self.election.run_apart(self.lead))


@pytest.fixture
async def busy(field: Field) -> AsyncIterator[Busy]:
    """It leads, and its loop stands still."""
    made = Busy(Client(field.server.connection, user_agent="busy"))
    field.tasks["busy"] = asyncio.create_task(made.run())
    await field.until("busy leads", lambda: made.acting)
    yield made
    made.done.set()


async def test_a_leader_whose_loop_stands_still_goes_on_renewing(field: Field, busy: Busy) -> None:
    began = busy.clock()
    renewed = field.lease["renewTime"]
    await field.until("its time would be over", lambda: busy.clock() > began + 2 * TIMING.deadline)
    await field.until("it renews", lambda: bool(field.lease["renewTime"] > renewed) and busy.election.leading)
    assert (busy.terms, field.lease["leaseTransitions"]) == (1, 0)


async def test_a_leader_whose_loop_stands_still_as_it_is_replaced_leads_no_more(
    field: Field, busy: Busy
) -> None:
    field.server.fault = only_from("two")
    async with Client(field.server.connection, user_agent="two") as other:
        two = field.enter("two", other)
        await field.until("two leads", lambda: two.acting)
        assert not busy.election.leading
        assert busy.acting, "it cannot hear of it; it can write nothing"
        busy.done.set()
        await field.until("busy has ended its work", lambda: not busy.acting)
        await field.leave("two")
    field.server.fault = lambda _: None
    await field.until("busy leads anew", lambda: busy.acting and busy.terms == 2)


async def test_a_leader_stops_when_it_cannot_renew_and_leads_again_when_it_can(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    field.server.fault = lambda _: refusal(503, "Unavailable", "down")
    await field.until("one has stopped", lambda: not one.acting)
    assert not one.election.leading
    field.server.fault = lambda _: None
    await field.until("one leads again", lambda: one.acting)
    # Nobody has had it meanwhile.
    assert (one.terms, field.lease["leaseTransitions"]) == (2, 0)


async def test_one_error_is_not_the_end(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    failed: list[str] = []

    def once(request: web.Request) -> web.StreamResponse | None:
        if failed or request.method != "PUT":
            return None
        failed.append(request.path)
        return refusal(500, "InternalError", "leader changed")

    field.server.fault = once
    renewed = field.lease["renewTime"]
    await field.until("one renews", lambda: bool(failed) and field.lease["renewTime"] != renewed)
    assert (one.terms, one.acting) == (1, True)


@pytest.mark.parametrize("lost", ["label", "lease"])
async def test_a_lease_that_others_edit_or_delete_is_kept(field: Field, lost: str) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    if lost == "lease":
        field.server.remove("leases", "leader", "spot")
    else:
        field.server.put("leases", field.server.get("leases", "leader", "spot"))
    before = len(field.server.writes)
    await field.until("one renews", lambda: len(field.server.writes) > before + 1)
    assert (one.terms, one.acting, field.lease["holderIdentity"]) == (1, True, "one")


async def test_a_leader_that_was_frozen_finds_itself_deposed_before_it_does_anything(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    writing = LeaderClient(field.server.connection, lambda: one.election.leading)
    async with writing:
        await writing.create("/api/v1/namespaces/ns/events", {"metadata": {"name": "before"}})
        one.stopped = 6.0
        # No other task has run since: it is the clock that says so.
        with pytest.raises(NotLeadingError, match="another operator may lead"):
            await writing.create("/api/v1/namespaces/ns/events", {"metadata": {"name": "after"}})
        for write in (writing.patch("/x", {}), writing.delete("/x")):
            with pytest.raises(NotLeadingError):
                await write
        assert await writing.get("/api"), "reading harms nobody"
    assert [name for _, name in field.server.objects["events"]] == ["before"]
    await field.until("it has stopped, and leads anew", lambda: one.terms == 2)


async def test_a_container_that_is_started_again_need_not_wait_for_itself(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    field.server.fault = lambda request: (
        refusal(503, "Unavailable", "killed") if request.method == "PUT" else None
    )
    await field.leave("one")
    assert field.lease["holderIdentity"] == "one", "it could not give it back"
    field.server.fault = lambda _: None
    anew = field.enter("one", ahead=-1e9)
    await field.until("it leads", lambda: anew.acting)
    assert field.lease["leaseTransitions"] == 0


async def test_a_namespace_that_is_not_there_is_said_so(
    field: Field, caplog: pytest.LogCaptureFixture
) -> None:
    field.server.fault = lambda request: (
        refusal(404, "NotFound", 'namespaces "spot" not found') if request.method == "POST" else None
    )
    one = field.enter("one")
    complaint = (
        """no word about the Lease spot/leader: ApiError('404 NotFound: namespaces "spot" not found')"""
    )
    await field.until("it is said", lambda: complaint in caplog.text)
    assert not one.acting
    field.server.fault = lambda _: None
    await field.until("one leads", lambda: one.acting)


async def test_a_failure_of_the_work_ends_the_process_and_gives_the_lease_back(field: Field) -> None:
    one = Candidate(field.client, "one", [])
    one.failure = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        await one.election.run(one.lead)
    assert field.lease["holderIdentity"] == ""


async def test_a_standby_that_leaves_changes_nothing(field: Field) -> None:
    one = field.enter("one")
    await field.until("one leads", lambda: one.acting)
    two = field.enter("two")
    renewed = field.lease["renewTime"]
    await field.until("one renews", lambda: bool(field.lease["renewTime"] != renewed))
    await field.leave("two")
    assert (two.terms, field.lease["holderIdentity"], one.acting) == (0, "one", True)
