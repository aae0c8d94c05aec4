"""A fork server: a process that has torch imported, and in whose forks programs run.

A fresh interpreter takes three seconds of processor time to import torch, once for each rank of each attempt, which is
many times what the tests' programs compute. A fork has it imported already, and is otherwise like any program: a
process with an environment and output of its own, which ends as interpreters end, or is killed. The process of the
tests is no place to fork from: where autograd has begun threads, no fork can use autograd.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

LONGEST_REQUEST = 1 << 17
EVERY_PROGRAM = (
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "spot_training.train.state",
)
"""What all of them import, sooner or later."""


class Server:
    """Its process, and what the tests ask of it."""

    def __init__(self, root: Path) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": str(root / "operator")},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def run(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        modules: Sequence[str] = (),
        brief_end: bool = False,
    ) -> "Forked":
        """Run a script with arguments in a fork which has these modules imported.

        An interpreter takes 0.3 s at its end to clear away all that torch consists of. With `brief_end` it waits for
        its threads and calls what is registered for its exit, and clears nothing away, as multiprocessing's forks do.
        """
        output, program_output = os.pipe()
        news, watcher_news = os.pipe()
        request = json.dumps([list(modules), list(words), dict(env), brief_end]).encode()
        socket.send_fds(self._requests, [request], [program_output, watcher_news])
        os.close(program_output)
        os.close(watcher_news)
        return Forked(os.fdopen(output), os.fdopen(news))

    def close(self) -> None:
        """It ends when nobody can ask any more."""
        self._requests.close()
        self._process.wait(timeout=60)


class Forked:
    """A program in a fork: the part of Popen that is used here."""

    def __init__(self, stdout: IO[str], news: IO[str]) -> None:
        self.stdout = stdout
        self._news = news
        self.pid = int(news.readline() or -1)
        if self.pid < 0:
            raise RuntimeError("the fork server has ended; see the captured output for why")

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit code, or minus the signal."""
        if not select.select([self._news], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"the program with PID {self.pid}", timeout)
        with self._news, self.stdout:
            return os.waitstatus_to_exitcode(int(self._news.readline()))


def _serve(requests: socket.socket) -> bool:
    """Fork for each request, until nobody can ask any more; returns in the forks alone: whether to end briefly."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 2)
        if not message:
            sys.exit()
        output, news = descriptors
        modules, words, env, brief_end = json.loads(message)
        for name in modules:
            importlib.import_module(name)
        threads = list(Path("/proc/self/task").iterdir())
        if len(threads) > 1:
            sys.exit(f"{len(threads)} threads, of which a fork would have one: set OMP_NUM_THREADS=1")
        gc.freeze()  # or the first collection in each fork would copy all memory
        if os.fork() == 0:
            requests.close()
            _fork_and_watch(output, news)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = words
            sys.path[0] = str(Path(words[0]).parent)
            return bool(brief_end)
        os.close(output)
        os.close(news)


def _fork_and_watch(output: int, news: int) -> None:
    """Returns in a fork that writes to `output`. This process tells of it in `news`: its PID, then how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if program:
        os.close(output)
        os.write(news, b"%d\n" % program)
        os.write(news, b"%d\n" % os.waitpid(program, 0)[1])
        os._exit(0)
    os.close(news)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)


def _run() -> None:
    runpy.run_path(sys.argv[0], run_name="__main__")


def _run_and_end_briefly() -> None:
    code = 0
    try:
        _run()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    for each in EVERY_PROGRAM:
        importlib.import_module(each)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects the forks that watch
    briefly = _serve(socket.socket(fileno=int(sys.argv[1])))
    (_run_and_end_briefly if briefly else _run)()
