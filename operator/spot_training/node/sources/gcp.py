"""Google Compute Engine: ``instance/preempted`` and ``instance/maintenance-event``, by long poll.

``preempted`` is ``FALSE`` or ``TRUE`` and names no time: 30 seconds are documented ("Spot VMs"). ``maintenance-event``
is ``NONE``, ``MIGRATE_ON_HOST_MAINTENANCE``, which the machine survives with all its pods, or
``TERMINATE_ON_HOST_MAINTENANCE``, 60 seconds before the machine stops, an hour for those with GPUs, without
saying which ("Query metadata server for maintenance event notices").

A request with ``wait_for_change=true&last_etag=…&timeout_sec=…`` is answered as soon as the value is another than the
one that had this ETag, or when the time is over ("View and query VM metadata"). While nothing is announced that is
how the agent waits; otherwise it asks plainly, so that each answer that withdraws a notice was given anew.

GKE's metadata proxy hides both keys from pods: the agent needs the host's network there.
"""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Final

from spot_training.node.notice import (
    ANSWERS_TO_WITHDRAW,
    RECLAIM,
    Answer,
    Limits,
    Nothing,
    Notice,
    Notices,
)
from spot_training.node.sources.fetch import (
    ANSWER_SECONDS,
    LINK_LOCAL,
    NotUnderstoodError,
    answered,
    connected,
    fetch,
    merged,
)

NAME: Final = "gcp"
LIMITS: Final = Limits(minimum=30.0, horizon=300.0)
HEADERS: Final = {"Metadata-Flavor": "Google"}
WAIT_SECONDS: Final = 10
"""Of a long poll: well below the time after which the agent would be taken for stuck."""

PREEMPTED: Final = Notice("gcp-preempted", RECLAIM, NAME, None)
TERMINATED: Final = Notice("gcp-maintenance", RECLAIM, NAME, None, minimum=60.0)

ETAG: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass
class Key:
    """One metadata key: what its values mean, and the ETag of the last one."""

    path: str
    meanings: dict[str, Answer]
    etag: str = ""


@dataclass
class Gcp:
    """The source behind the metadata server at ``address``. ``quiet`` counts the answers in a row without a notice."""

    address: str = LINK_LOCAL
    answer_seconds: float = ANSWER_SECONDS
    wait_seconds: int = WAIT_SECONDS
    quiet: int = field(default=0, init=False)
    name: str = field(default=NAME, init=False)
    limits: Limits = field(default=LIMITS, init=False)

    def __post_init__(self) -> None:
        self._keys = (
            Key("preempted", {"FALSE": Nothing(), "TRUE": Notices((PREEMPTED,))}),
            Key(
                "maintenance-event",
                {
                    "NONE": Nothing(),
                    "MIGRATE_ON_HOST_MAINTENANCE": Nothing(),
                    "TERMINATE_ON_HOST_MAINTENANCE": Notices((TERMINATED,)),
                },
            ),
        )

    async def ask(self) -> Answer:
        """Ask for both keys at once; returns when one tells anything or all have answered."""
        waits = self.quiet >= ANSWERS_TO_WITHDRAW and all(key.etag for key in self._keys)
        seconds = self.answer_seconds + (self.wait_seconds if waits else 0)
        tasks = {asyncio.create_task(answered(self._ask(key, waits), seconds)) for key in self._keys}
        answers: list[Answer] = []
        pending = tasks
        try:
            while pending and not (waits and any(not isinstance(answer, Nothing) for answer in answers)):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answers += [task.result() for task in done]
        finally:
            for task in pending:
                task.cancel()
        answer = merged(answers)
        self.quiet = self.quiet + 1 if isinstance(answer, Nothing) else 0
        return answer

    async def _ask(self, key: Key, waits: bool) -> Answer:
        url = f"{self.address}/computeMetadata/v1/instance/{key.path}"
        if waits:
            url += f"?wait_for_change=true&last_etag={key.etag}&timeout_sec={self.wait_seconds}"
        async with connected() as session:
            reply = await fetch(session, url, HEADERS)
        if reply.status != 200:
            raise NotUnderstoodError(f"{key.path}: HTTP status {reply.status}")
        if reply.headers.get("Metadata-Flavor") != "Google":
            raise NotUnderstoodError(f"{key.path}: not from Google's metadata server: {reply.body[:60]!r}")
        meaning = key.meanings.get(reply.text())
        if meaning is None:
            raise NotUnderstoodError(f"{key.path}: {reply.body[:60]!r} is none of its documented values")
        etag = reply.headers.get("ETag", "")
        key.etag = etag if ETAG.fullmatch(etag) else ""
        return meaning


def gcp(address: str = LINK_LOCAL) -> Gcp:
    """The source behind the metadata server at this address."""
    return Gcp(address)
