"""How long to wait before the next attempt, and whose setback it was: the pool's, or the job's.

Full jitter over a doubling interval. Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
The jitter is a hash of job and attempt, and an attempt has one pool, so that the same world gives the same plan.
"""

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

HEALTHY_SECONDS = 60.0
"""An attempt that ran this long, or saved a newer checkpoint, breaks a streak: the trouble before it is over."""

FORGOTTEN_SECONDS: Final = 3600.0
"""So long after a pool may be tried again, what came before is not held against it any more."""

BURST: Final = 9
"""So many setbacks may come at once, on whatever pools; then one in a third of the longest delay."""

WAITS: Final[Mapping[str, Literal["Pool", "Job"]]] = {
    # Its machines were taken, were lost, or did not take the gang in: another pool's may.
    "Reclaimed": "Pool",
    "Evicted": "Pool",
    "PreemptedByScheduler": "Pool",
    "TaintEviction": "Pool",
    "NodePressure": "Pool",
    "NodeShutdown": "Pool",
    "NodeLost": "Pool",
    "NodeRestarted": "Pool",
    "NodeRefused": "Pool",
    "NodeLeft": "Pool",
    "ProvisionTimeout": "Pool",
    "TooDear": "Pool",
    # Somebody on the machine told the program to stop: nobody else does.
    "Preempted": "Pool",
    # A user, a queue or a quota: they are the same in front of every pool.
    "PodDeleted": "Job",
    "PodGone": "Job",
    "EvictedByKueue": "Job",
    "PodsRefused": "Job",
    # The program, or what the template says of it; where it has run elsewhere, the pool is avoided (see suitability).
    "RetryableExit": "Job",
    "StartError": "Job",
    "PodRefused": "Job",
    "TemplateInvalid": "Job",
    "InitFailed": "Job",
}
"""By the reason of an attempt's end that is no failure: what waits before it is tried again."""


def of_the_pool(reason: str) -> bool:
    """Whether only the pool waits. Failures are the program's, and words of others may mean anything: the job waits."""
    return WAITS.get(reason) == "Pool"


def delay(streak: int, initial: float, longest: float, seed: str) -> float:
    """Seconds to wait after the ``streak``-th bad end in a row (1 is the first).

    Uniform in (0, min(longest, initial * 2^(streak - 1))]; ``seed`` names job and attempt.
    """
    if streak <= 0:
        return 0.0
    cap = min(longest, initial * 2.0 ** min(streak - 1, 30))
    return cap * fraction(seed)


def pace(paid: float | None, now: float, longest: float) -> tuple[float, float]:
    """One more setback of the job, wherever: until when all so far are paid for, and when the next try may be.

    Delays that are each pool's own bound the attempts by the number of pools; this bounds them however many there are:
    1 + ``BURST`` + 3 * 3600 / ``longest`` in any hour (the generic cell rate algorithm, ITU-T I.371). ``paid``: what
    came of the setback before.
    """
    each = longest / 3.0
    until = max(paid or now, now) + each
    return until, max(now, until - BURST * each)


def fraction(seed: str) -> float:
    """A number in (0, 1] that depends on nothing but the seed."""
    digest = hashlib.sha256(seed.encode()).digest()
    return (int.from_bytes(digest[:8]) + 1) / 2.0**64
