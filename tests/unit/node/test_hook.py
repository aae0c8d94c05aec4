"""The user's hooks: called with the facts, bounded in time, nothing left behind."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from spot_training.node.hook import CommandHook, UrlHook
from spot_training.node.message import FACTS, Occasion
from spot_training.node.metrics import Metrics
from tests.unit.node import wire
from tests.unit.node.metadata import ok
from tests.unit.node.receiver import receiver
from tests.unit.node.waiting import until

GIVEN = {name: f"the {name}" for name in FACTS}


def counted(metrics: Metrics, way: str, result: str) -> bool:
    line = f'spot_agent_hook_calls_total{{result="{result}",way="{way}"}} 1.0'
    return line in generate_latest(metrics.registry).decode()


def said(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """What the one log line says."""
    (record,) = caplog.records
    found: dict[str, str] = record.__dict__["spot_fields"]
    return found


def gone(pid: int) -> bool:
    """Whether no such process runs: it is not there, or it is a zombie that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes between open and read
        return True


def test_hooks_are_for_notices_and_not_for_their_ends() -> None:
    expected = {Occasion.NOTICE, Occasion.WARNING}
    assert CommandHook.occasions == UrlHook.occasions == expected


async def test_a_command_gets_the_facts_and_nothing_of_the_agents_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT_WEBHOOK_URL", "https://secret")
    metrics, out = Metrics(), tmp_path / "environment"
    code = f"import json, os; open({str(out)!r}, 'w').write(json.dumps(dict(os.environ)))"
    await CommandHook([sys.executable, "-S", "-c", code], 30, metrics).send(GIVEN)
    environment = json.loads(out.read_text())
    environment.pop("LC_CTYPE", None)  # Python's own, where there is no locale
    expected = {f"SPOT_{name.upper()}": f"the {name}" for name in FACTS}
    assert environment == expected | {"PATH": os.environ["PATH"]}
    assert counted(metrics, "command", "done")


async def test_a_command_that_fails_is_told_with_the_end_of_its_output(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    await CommandHook(
        ["sh", "-c", "yes | head -c 100000; echo; echo no such disk >&2; exit 3"], 30, metrics
    ).send(GIVEN)
    assert counted(metrics, "command", "failed")
    told = said(caplog)
    assert told["why"] == "exit code 3" and told["notice"] == "the notice"
    assert told["output"].endswith("\nno such disk\n") and len(told["output"]) == 1000


@pytest.mark.parametrize("command", [["/nowhere/flush"], ["/etc/passwd"], ["a\0b"]])
async def test_a_command_that_cannot_be_run(command: list[str], caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    await CommandHook(command, 30, metrics).send(GIVEN)
    assert counted(metrics, "command", "failed")
    assert said(caplog)["why"]


async def test_a_command_that_takes_too_long_is_killed_with_its_children(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, pids = Metrics(), tmp_path / "pids"
    # Both ignore SIGTERM, and the child holds the pipe.
    script = f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; echo began; wait"
    await CommandHook(["sh", "-c", script], 1, metrics).send(GIVEN)
    assert counted(metrics, "command", "timeout")
    assert said(caplog)["why"] == "not over within 1 s"
    assert said(caplog)["output"] == "began\n"
    for pid in map(int, pids.read_text().split()):
        await until(f"the end of {pid}", lambda pid=pid: gone(pid), lambda: pids.read_text())  # type: ignore[misc]


async def test_an_agent_that_ends_takes_its_command_along(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    task = asyncio.create_task(
        CommandHook(["sh", "-c", f"echo $$ > {pids}; exec sleep 600"], 300, Metrics()).send(GIVEN)
    )
    await until(
        "the command", lambda: pids.exists() and bool(pids.read_text()), lambda: list(tmp_path.iterdir())
    )
    task.cancel()
    await asyncio.wait([task])
    pid = int(pids.read_text())
    await until("its end", lambda: gone(pid), lambda: pid)


async def test_a_url_is_posted_the_facts_once() -> None:
    metrics = Metrics()
    async with receiver(ok("")) as server:
        await UrlHook(server.address + "/notice", 30, metrics).send(GIVEN)
    (request,) = server.requests
    assert request.line == "POST /notice"
    assert json.loads(request.body) == GIVEN
    assert counted(metrics, "url", "done")


async def test_a_url_that_fails_is_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    async with receiver(wire.whole("500 Oops", b"")) as server:
        await UrlHook(server.address, 30, metrics).send(GIVEN)
    assert len(server.requests) == 1
    assert counted(metrics, "url", "failed")
    assert said(caplog)["why"] == "HTTP status 500"


async def test_a_url_that_does_not_answer_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    async with receiver(wire.silent) as server:
        await UrlHook(server.address, 0.1, metrics).send(GIVEN)
    assert counted(metrics, "url", "failed")
    assert said(caplog)["why"] == "no answer within 0.1 s"
