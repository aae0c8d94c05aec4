"""A training program that is interrupted at random, again and again, and its final weights: run where torch is.

Every attempt is forked from this process, which has imported torch, so that it begins within a fraction of a second.
Prints what came out as JSON.
"""

import argparse
import atexit
import json
import os
import random
import re
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import torch

from tests.bench.checkpoint.subject import fence

EXAMPLES: Final = Path(__file__).parents[3] / "examples"
_STEPS: Final = 300
_PAUSE: Final = 0.01
"""Seconds between two steps, so that there is something to interrupt."""
_FURTHER: Final = 8
"""An attempt is interrupted within so many steps."""
_HOW: Final = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@dataclass
class Attempt:
    """The processes of one attempt; the output of rank 0 can be read while it runs."""

    pids: list[int]
    output: IO[str]
    seen: list[str] = field(default_factory=list)

    def read_until(self, pattern: str) -> re.Match[str] | None:
        """Read until a line has this; None where the output ends before."""
        for line in self.output:
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found
        return None

    def end(self) -> list[int]:
        """Wait for the end of all; their exit codes, below 0 for a signal."""
        self.seen.extend(self.output)
        self.output.close()
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


@dataclass
class Job:
    """A script of the examples, on so many ranks; `words` go to it in every attempt."""

    script: str
    world: int
    directory: Path
    words: tuple[str, ...] = ()
    attempts: int = 0

    def start(self, *words: str) -> Attempt:
        """Fork the next attempt."""
        self.attempts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        reader, writer = os.pipe()
        pids = []
        for rank in range(self.world):
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                self._run(rank, port, writer, [*self.words, *words])
            pids.append(pid)
        os.close(writer)
        return Attempt(pids, os.fdopen(reader))

    def finish(self) -> str:
        """An attempt that is not interrupted; the digest of its weights."""
        attempt = self.start()
        found = attempt.read_until(r"final weights sha256=(\w+)")
        codes = attempt.end()
        assert found and codes == [0] * self.world, f"exit codes {codes}: {''.join(attempt.seen)}"
        return found[1]

    def _run(self, rank: int, port: int, output: int, words: list[str]) -> None:
        code = 1
        try:
            os.environ |= {
                "SPOT_CHECKPOINT_DIR": str(self.directory),
                "SPOT_FENCE": fence(self.attempts),
                "SPOT_ATTEMPT": str(self.attempts),
                "SPOT_TERMINATION_LOG": os.devnull,
                "RANK": str(rank),
                "WORLD_SIZE": str(self.world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = [self.script, "--steps", str(_STEPS), "--print-every", "1", *words]
            runpy.run_path(str(EXAMPLES / self.script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stdout.flush()
            # What stands in atexit is part of how a program ends; nothing of this process is to come after it.
            atexit._run_exitfuncs()
            os._exit(code)


def interrupt(job: Job, count: int, chance: random.Random) -> Counter[str]:
    """Start `job` and interrupt it, `count` times; how often by what, and how it ended.

    Mostly one rank gets the signal: the others learn of it from that one, or find it gone.
    """
    ways: Counter[str] = Counter()
    while ways.total() < count:
        how = chance.choice(_HOW)
        background = ["--background"] if chance.random() < 0.5 else []
        attempt = job.start("--save-every", "5", "--seconds-per-step", str(_PAUSE), *background)
        if chance.random() < 0.8:
            for _ in range(chance.randint(1, _FURTHER)):
                attempt.read_until(r"^step \d+/")
            time.sleep(chance.uniform(0, 2 * _PAUSE))
            hit = [chance.choice(attempt.pids)]
        else:  # while it begins; all, since a rank that waits for another to begin does so for a minute
            time.sleep(chance.uniform(0, 1))
            hit = attempt.pids
        for pid in hit:
            os.kill(pid, how)
        codes = attempt.end()
        said = "".join(attempt.seen)
        assert 0 not in codes, f"it was at its end before it was interrupted: {said}"
        ways[f"{how.name} {sorted(set(codes))}"] += 1
    return ways


def try_job(script: str, world: int, count: int, seed: int, *words: str) -> dict[str, object]:
    """Whether the weights are the same, with and without interruptions."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        expected = Job(script, world, Path(scratch) / "whole", words).finish()
        job = Job(script, world, Path(scratch) / "interrupted", words)
        ways = interrupt(job, count, random.Random(seed))
        digest = job.finish()
    return {
        "equal": digest == expected,
        "interruptions": ways.total(),
        "ways": ways,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--interruptions", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        f"train.py on {world} ranks": try_job("train.py", world, arguments.interruptions, arguments.seed)
        for world in arguments.ranks
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
