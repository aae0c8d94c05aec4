"""`make bench-operator`: the operator at scale and on real nodes."""

import argparse
import asyncio

from tests.bench import recovery, scale
from tests.bench.report import Report
from tests.kit.operators import installed_operator_away


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=scale.Size.nodes)
    parser.add_argument("--jobs", type=int, default=scale.Size.jobs)
    parser.add_argument("--trials", type=int, default=20, help="recoveries on real nodes, of each shape")
    parser.add_argument("--only", choices=["scale", "recovery"])
    options = parser.parse_args()
    report = Report("operator")
    if options.only != "recovery":
        with installed_operator_away():
            asyncio.run(scale.measure(report, scale.Size(options.nodes, options.jobs)))
    if options.only != "scale":
        recovery.measure(report, options.trials)
    report.finish()


if __name__ == "__main__":
    main()
