"""Azure: Scheduled Events, those that name this machine.

``GET /metadata/scheduledevents`` with ``Metadata: true`` answers ``{"DocumentIncarnation":1,"Events":[…]}``. An event
has ``EventId``, ``EventType``, ``Resources`` (names of machines, the neighbours' too), ``EventStatus`` Scheduled or
Started, and ``NotBefore`` as ``Mon, 19 Sep 2016 18:29:47 GMT``, empty once it has started. It is over when it is not
listed any more. Ahead of it are 30 seconds for Preempt, 5 to 15 minutes for Terminate as configured, 10 for
Redeploy, 15 for Reboot ("Azure Metadata Service: Scheduled Events for Linux VMs"). A Freeze is a pause of seconds that
the machine survives with all its pods. The first request switches the service on and can take two minutes; a day
without one switches it off.

No event is approved: each happens at its own time, whose whole length the drain may use.
"""

import asyncio
import re
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
    """The source behind the metadata service at ``address``."""

    address: str = LINK_LOCAL
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

    async def _ask(self) -> Answer:
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
        body = reply.json()
        try:
            notices = events(body, self._machine)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise NotUnderstoodError(
                f"not as documented: {str(body)[:80]} ({type(error).__name__}: {error})"
            ) from None
        return Notices(notices) if notices else Nothing()


def azure(address: str = LINK_LOCAL) -> Azure:
    """The source behind the metadata service at this address."""
    return Azure(address)


def events(body: Any, machine: str) -> tuple[Notice, ...]:
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
        # Azure does not keep to one spelling of a name's case.
        if kind is None or machine.casefold() not in (str(name).casefold() for name in event["Resources"]):
            continue
        says = None
        if event["NotBefore"]:
            moment = datetime.strptime(event["NotBefore"], "%a, %d %b %Y %H:%M:%S GMT")
            says = moment.replace(tzinfo=UTC).timestamp()
        notices.append(Notice(f"{NAME}-{str(event['EventId'])[:64]}", kind, NAME, says))
    return tuple(notices)
