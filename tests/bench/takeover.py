"""`make bench-takeover`: how long nobody leads, when the leader is killed and when it is told to go.

Two operators on the test cluster, nothing else to do. From the signal until
the other leads; and, for one that is told to go, until its process has ended.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.bench.report import Report
from tests.kit.kube import kubectl
from tests.kit.operators import Operator, installed_operator_away
from tests.kit.shell import wait_until

NAMESPACE: Final = "bench-takeover"


def takeover(directory: Path, *, killed: bool) -> tuple[float, float]:
    """Seconds until the other leads, and until the first has ended."""
    one = Operator(NAMESPACE, directory)
    one.wait_leading()
    two = Operator(NAMESPACE, directory)
    try:
        two.wait_standing_by()
        began = time.monotonic()
        if killed:
            one.kill()
        else:
            one.stop()
        ended = time.monotonic() - began
        wait_until("the other leads", lambda: two.leading, timeout=60, every=0.01, seen=two.seen)
        led = time.monotonic() - began
        two.stop()
        return led, ended
    finally:
        one.end()
        two.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5)
    trials = parser.parse_args().trials
    report = Report("takeover")
    kubectl("create", "namespace", NAMESPACE)
    try:
        with installed_operator_away(), tempfile.TemporaryDirectory() as directory:
            killed = [takeover(Path(directory), killed=True) for _ in range(trials)]
            told = [takeover(Path(directory), killed=False) for _ in range(trials)]
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    report.trials("takeover_after_kill_seconds", [led for led, _ in killed], "s", "<= 9")
    report.trials("takeover_after_stop_seconds", [led for led, _ in told], "s", "<= 2")
    report.trials("stop_seconds", [ended for _, ended in told], "s", "<= 5")
    report.finish()


if __name__ == "__main__":
    main()
