"""How long to wait before the next attempt: full jitter over a doubling interval.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015. The jitter is a hash of job and
attempt, so that the same world gives the same plan.
"""

import hashlib

HEALTHY_SECONDS = 60.0
"""An attempt that ran this long, or saved a newer checkpoint, breaks a streak: the trouble before it is over."""


def delay(streak: int, initial: float, longest: float, seed: str) -> float:
    """Seconds to wait after the ``streak``-th bad end in a row (1 is the first).

    Uniform in (0, min(longest, initial * 2^(streak - 1))]; ``seed`` names job and attempt.
    """
    if streak <= 0:
        return 0.0
    cap = min(longest, initial * 2.0 ** min(streak - 1, 30))
    return cap * fraction(seed)


def fraction(seed: str) -> float:
    """A number in (0, 1] that depends on nothing but the seed."""
    digest = hashlib.sha256(seed.encode()).digest()
    return (int.from_bytes(digest[:8]) + 1) / 2.0**64
