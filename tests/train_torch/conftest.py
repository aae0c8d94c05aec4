import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from tests.train_torch.forkserver import Forked, Server

ROOT = Path(__file__).parents[2]


@dataclass
class Rank:
    """One process of an attempt, as its pod would run it."""

    process: subprocess.Popen[str] | Forked
    termination_log: Path
    output: IO[str]

    def report(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.termination_log.read_text())
        return record

    def end(self) -> tuple[int, str]:
        """Exit code and all output."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        code = self.process.wait(timeout=120)
        self.output.write(rest)
        self.output.seek(0)
        return code, self.output.read()

    def read_until(self, step: int) -> None:
        """Read the output until the program tells that it has done `step` steps."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.write(line)
            if line.startswith(f"step {step}/"):
                return
        raise AssertionError(f"never came to step {step}: {self.end()}")


@dataclass
class Job:
    """A job whose attempts run one of the examples on this machine."""

    directory: Path
    world: int
    arguments: list[str]
    server: Server
    launcher: Sequence[str] = ()
    example: str = "train.py"
    fresh: bool = False
    """Each process an interpreter that imports all anew, as in a pod, and no fork; with a launcher it is always so."""
    modules: Sequence[str] = ()
    """What a fork has imported beside torch."""
    brief_end: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    attempts: list[list[Rank]] = field(default_factory=list)

    def start(self, **variables: str) -> list[Rank]:
        number = len(self.attempts) + 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(self.world):
            log = self.directory / f"termination-log-{number}-{rank}"
            log.touch()
            env = {
                **os.environ,
                "PYTHONPATH": str(ROOT / "operator"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "USE_LIBUV": "0",
                "SPOT_CHECKPOINT_DIR": str(self.directory / "checkpoints"),
                "SPOT_FENCE": f"20261121T043500Z-0f3c-{number:06d}",
                "SPOT_ATTEMPT": str(number),
                "SPOT_GRACE_SECONDS": "25",
                "SPOT_TERMINATION_LOG": str(log),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(self.world),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "PET_NNODES": str(self.world),
                "PET_RDZV_ID": f"attempt-{number}",
                # Agents that meet are numbered by their addresses.
                "PET_LOCAL_ADDR": f"127.0.0.{rank + 1}",
                **self.variables,
                **variables,
            }
            words = [str(ROOT / "examples" / self.example), *self.arguments]
            ranks.append(
                Rank(self._run(words, env), log, (self.directory / f"output-{number}-{rank}").open("w+"))
            )
        self.attempts.append(ranks)
        return ranks

    def _run(self, words: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str] | Forked:
        if not self.fresh and not self.launcher:
            return self.server.run(words, env, self.modules, self.brief_end)
        command = [sys.executable, *self.launcher, *words]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def interrupt(self, at_step: int, number: signal.Signals, rank: int = 0) -> list[Rank]:
        """One attempt in which `rank` gets a signal once rank 0 has told of `at_step`."""
        ranks = self.start()
        ranks[0].read_until(at_step)
        ranks[rank].process.send_signal(number)
        return ranks

    def finish(self) -> str:
        """One attempt to the end, and the digest of its weights."""
        ranks = self.start()
        ends = [rank.end() for rank in ranks]
        assert [code for code, _ in ends] == [0] * self.world, ends
        for rank in ranks:
            assert rank.report()["reason"] == "Completed"
        digest: str = ranks[0].report()["extras"]["digest"]
        assert f"final weights sha256={digest}" in ends[0][1]
        return digest


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server(ROOT)
    yield server
    server.close()


@pytest.fixture
def make_job(tmp_path: Path, server: Server) -> Callable[..., Job]:
    made: list[Job] = []

    def make(world: int, *arguments: str, **how: Any) -> Job:
        directory = tmp_path / f"job-{len(made)}"
        directory.mkdir()
        words = ["--save-every", "8", "--print-every", "1", *arguments]
        made.append(Job(directory, world, words, server, **how))
        return made[-1]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What forks this process first: where autograd has begun threads in it, no fork of it can use autograd."""
    forking = ("test_lightning.py", "test_trainers.py")
    items.sort(key=lambda item: item.path.name not in forking)
