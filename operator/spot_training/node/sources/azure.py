"""Azure: Scheduled Events, those that name this machine.

``GET /metadata/scheduledevents`` with ``Metadata: true`` answers ``{"DocumentIncarnation":1,"Events":[…]}``. An event
has ``EventId``, ``EventType``, ``Resources`` (names of machines, the neighbours' too), ``EventStatus`` Scheduled or
Started, and ``NotBefore`` as ``Mon, 19 Sep 2016 18:29:47 GMT``, empty once it has started. It is over when it is not
listed any more. Ahead of it are 30 seconds for Preempt, 5 to 15 minutes for Terminate as configured, 10 for
Redeploy, 15 for Reboot ("Azure Metadata Service: Scheduled Events for Linux VMs"). A Freeze is a pause of seconds that
the machine survives with all its pods. The first request switches the service on and can take two minutes; a day
without one switches it off.

No event is approved unless that is asked for: each happens at its own time, whose whole length the drain may use.
``POST`` of ``{"StartRequests":[{"EventId":"…"}]}`` to the same URL lets an event happen at once, and does so for every
machine that it names. So only one that names this machine alone is approved.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from spot_training.node.notice import (
    MAINTENANCE,
    RECLAIM,
    Answer,
    Limits,
    Nothing,
    Notice,
    Notices,
    Unknown,
)
from spot_training.node.sources.fetch import (
    ANSWER_SECONDS,
    LINK_LOCAL,
    LONGEST_LIST,
    NotUnderstoodError,
    answered,
    connected,
    fetch,
)

NAME: Final = "azure"
LIMITS: Final = Limits(minimum=30.0, horizon=1200.0)
HEADERS: Final = {"Metadata": "true"}
MACHINE: Final = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
MACHINE_NAME: Final = re.compile(r"[\w.-]{1,128}")
EVENTS: Final = "/metadata/scheduledevents?api-version=2020-07-01"
FIRST_SECONDS: Final = 150.0
"""The documented two minutes and some more."""

KINDS: Final = {"Preempt": RECLAIM, "Terminate": RECLAIM, "Reboot": MAINTENANCE, "Redeploy": MAINTENANCE}


@dataclass
class Azure:
    """The source behind the metadata service at ``address``; ``approvals``: its notices may be approved."""

    address: str = LINK_LOCAL
    approvals: bool = False
    answer_seconds: float = ANSWER_SECONDS
    first_seconds: float = FIRST_SECONDS
    name: str = field(default=NAME, init=False)
    limits: Limits = field(default=LIMITS, init=False)

    def __post_init__(self) -> None:
        self._machine = ""
        self._first: asyncio.Task[Answer] | None = None
        self._switched_on = False

    async def ask(self) -> Answer:
        """Ask once; the first question goes on behind several calls, for as long as the service may take."""
        if self._switched_on:
            return await answered(self._ask(), self.answer_seconds)
        if self._first is None:
            self._first = asyncio.create_task(answered(self._ask(), self.first_seconds))
        done, _ = await asyncio.wait({self._first}, timeout=self.answer_seconds)
        if not done:
            return Unknown("no answer yet: the first one may take two minutes")
        answer, self._first = self._first.result(), None
        self._switched_on = not isinstance(answer, Unknown)
        return answer

    async def approve(self, notice: str) -> str:
        """Let the event of this notice happen now; returns why it was not approved, or an empty string."""
        answer = await answered(self._approve(notice), self.answer_seconds)
        return answer.reason if isinstance(answer, Unknown) else ""

    async def _approve(self, notice: str) -> Answer:
        # Listed anew: since the last answer another machine may have joined the event.
        body = await self._listed()
        with _documented(body):
            request = start_request(body, self._machine, notice)
        async with connected() as session:
            reply = await fetch(session, self.address + EVENTS, HEADERS, method="POST", data=request)
        if reply.status != 200:
            raise NotUnderstoodError(f"HTTP status {reply.status}: {reply.body[:60]!r}")
        return Nothing()

    async def _ask(self) -> Answer:
        body = await self._listed()
        with _documented(body):
            notices = events(body, self._machine, self.approvals)
        return Notices(notices) if notices else Nothing()

    async def _listed(self) -> Any:
        """The document with the events; the machine's name is known after it."""
        async with connected() as session:
            if not self._machine:
                reply = await fetch(session, self.address + MACHINE, HEADERS)
                machine = reply.text() if reply.status == 200 else ""
                if not MACHINE_NAME.fullmatch(machine):
                    raise NotUnderstoodError(
                        f"no name of this machine: HTTP status {reply.status}, {reply.body[:60]!r}"
                    )
                self._machine = machine
            reply = await fetch(session, self.address + EVENTS, HEADERS, longest=LONGEST_LIST)
        if reply.status != 200:
            raise NotUnderstoodError(f"HTTP status {reply.status}")
        return reply.json()


def azure(address: str = LINK_LOCAL, approvals: bool = False) -> Azure:
    """The source behind the metadata service at this address."""
    return Azure(address, approvals)


def events(body: Any, machine: str, approvals: bool = False) -> tuple[Notice, ...]:
    """The notices for this machine.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` where the form is not the documented one.
    """
    if not isinstance(body["Events"], list):
        raise ValueError("Events is not a list")
    notices = []
    for event in body["Events"]:
        if not isinstance(event["Resources"], list):
            raise ValueError("Resources is not a list")
        kind = KINDS.get(event["EventType"])
        if kind is None or _spelt(machine) not in map(_spelt, event["Resources"]):
            continue
        says = None
        if event["NotBefore"]:
            moment = datetime.strptime(event["NotBefore"], "%a, %d %b %Y %H:%M:%S GMT")
            says = moment.replace(tzinfo=UTC).timestamp()
        approvable = approvals and _approvable(event, machine)
        notices.append(Notice(_id(event), kind, NAME, says, approvable=approvable))
    return tuple(notices)


def start_request(body: Any, machine: str, notice: str) -> bytes:
    """The body of the request that approves the event of this notice.

    Raises ``NotUnderstoodError`` where no such event is listed that still waits and names this machine alone.
    """
    for event in body["Events"]:
        if _approvable(event, machine) and _id(event) == notice:
            return json.dumps({"StartRequests": [{"EventId": event["EventId"]}]}).encode()
    raise NotUnderstoodError("no event of this id waits and names this machine alone")


@contextmanager
def _documented(body: Any) -> Iterator[None]:
    """What stumbles over another form than the documented one fails with ``NotUnderstoodError``."""
    try:
        yield
    except NotUnderstoodError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NotUnderstoodError(
            f"not as documented: {str(body)[:80]} ({type(error).__name__}: {error})"
        ) from None


def _id(event: Any) -> str:
    return f"{NAME}-{str(event['EventId'])[:64]}"


def _approvable(event: Any, machine: str) -> bool:
    """Whether the event waits for its time and concerns nothing but this machine."""
    return event.get("EventStatus") == "Scheduled" and [*map(_spelt, event["Resources"])] == [_spelt(machine)]


def _spelt(name: object) -> str:
    """A name in one spelling: Azure does not keep to one case."""
    return str(name).casefold()
