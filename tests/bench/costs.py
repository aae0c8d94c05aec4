"""What a step costs on this machine: processor time by program, and what the API server was asked."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.operator_process import TICKS
from tests.bench.report import Report
from tests.kit.kube import kubectl

SHOWN: Final = 9
"""Programs and kinds of request that are named; the rest is small."""
_REQUESTS: Final = re.compile(r"^apiserver_request_total\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Costs:
    """Since the machine and the API server were started: processor seconds by program, and answered requests."""

    seconds: Mapping[str, float]
    requests: Mapping[str, float]


@contextmanager
def noted(report: Report, what: str, operator: int = 0) -> Iterator[None]:
    """Note under the report's table what the context has cost; ``operator`` is the process ID of one beside it."""
    before = _costs(operator)
    yield
    after = _costs(operator)
    used = ", ".join(f"{name} {more:.1f} s" for name, more in _most(before.seconds, after.seconds))
    asked = ", ".join(f"{name} {more:.0f}" for name, more in _most(before.requests, after.requests))
    report.note(f"{what}: processor time: {used}; requests: {asked}")


def _most(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, float]]:
    """What has grown most, by how much."""
    grown = [(name, value - before.get(name, 0.0)) for name, value in after.items()]
    return sorted(grown, key=lambda each: -each[1])[:SHOWN]


def _costs(operator: int) -> Costs:
    return Costs(_seconds(operator), written())


def written() -> dict[str, float]:
    """How often the API server was asked to change something since it was started, by verb, resource and answer."""
    return _requests(kubectl("get", "--raw", "/metrics"))


def _seconds(operator: int) -> dict[str, float]:
    names = {os.getpid(): "this benchmark", operator: "operator"}
    found: dict[str, float] = defaultdict(float)
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            name, fields = (directory / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue  # it has ended
        used = sum(int(each) for each in fields.split()[11:13]) / TICKS
        if name.startswith("kworker/"):
            name = "kworkers"  # else each is known by what it has worked on last
        found[names.get(int(directory.name), name)] += used
    return found


def _requests(text: str) -> dict[str, float]:
    """By verb and resource, without those that only read: watches are counted when they end."""
    found: dict[str, float] = defaultdict(float)
    for labels, number in _REQUESTS.findall(text):
        of = dict(_LABEL.findall(labels))
        if of["verb"] in ("GET", "LIST", "WATCH", "CONNECT"):
            continue
        resource = "/".join(filter(None, (of["resource"], of["subresource"])))
        dry = " (dry run)" if of.get("dry_run") else ""
        found[f"{of['verb']} {resource}{dry} {of['code']}"] += float(number)
    return found
