"""Runs an unchanged program so that it hears signals from its first instant, and tells how it ended.

    python -m spot_training.train [--] script.py arguments ...
    python -m spot_training.train -m module arguments ...

With ``--interrupt`` before that, a program without the library that saves on KeyboardInterrupt hears SIGTERM as SIGINT.

The first process of a container (PID 1) does not get a signal that it has no handler for: the kernel drops it. A
training program that is PID 1 is deaf until `Training(...)` is made, for the many seconds in which it imports
torch and builds its model; told to stop then, it trains on until SIGKILL.

So the program runs as a child, with the signals as they are for any program: until it has a handler of its own,
SIGTERM ends it at once, in the middle of an import too, and nothing is lost. In one process instead, by `runpy`, a
handler would wait until the import of a large library came back to the interpreter, an exception out of it could be
swallowed there, a crash in native code would go untold, and `multiprocessing` would not find its main module. The
child may be anything that starts further processes, such as ``-m torch.distributed.run``: signals go to it alone, and
what its descendants leave behind is reaped.

The termination message is the program's own where it ended with a final word of the library. Else it is made from how
the program ended: see `judge`.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spot_training.train import report
from spot_training.train.environment import ENV_LOCAL_RANK, ENV_TERMINATION_LOG, TERMINATION_LOG
from spot_training.train.report import TerminationLog, log
from spot_training.train.signals import EXIT_PREEMPTED, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERRUPT: Final = "--interrupt"
USAGE: Final = (
    f"usage: python -m spot_training.train [{INTERRUPT}] [--] script.py [args ...] | -m module [args ...]"
)
EXIT_USAGE: Final = 2
EXIT_NOT_STARTED: Final = 127
"""What shells give for a program that they cannot start."""
_FORWARDED: Final = (*SIGNALS, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDS_OF_A_STOPPED_PROGRAM: Final = frozenset({0, EXIT_PREEMPTED, 128 + signal.SIGINT})


@dataclass(frozen=True)
class End:
    """What to tell and to give back: `message` None leaves the termination message as the program wrote it."""

    code: int
    message: dict[str, Any] | None


def judge(code: int, told: bool, said: dict[str, Any] | None) -> End:
    """How a program has ended. `code` is its exit code, 128 + N where signal N has killed it.

    `told`: whether it had been told to stop. `said`: the last termination message that the program wrote itself. What
    is final in it stays; a message of a program that still ran gets the reason of its end, and keeps its facts. A
    program that was told to stop and ends with 0, 143 or 130, or says Preempted, has stopped as told: 143. With 0, too:
    to take it for complete could lose the rest of the training, to start it again loses a start.
    """
    reason = said.get("reason") if said else None
    if reason in (report.COMPLETED, report.PEER_LOST, *report.FAILURES):
        return End(code, None)
    if reason == report.PREEMPTED:
        return End(EXIT_PREEMPTED if told else code, None)
    facts = said or {}
    if told and code in _ENDS_OF_A_STOPPED_PROGRAM:
        return End(EXIT_PREEMPTED, {**facts, "reason": report.PREEMPTED})
    if code:
        return End(code, {**facts, "reason": report.FAILED, "message": _in_words(code)})
    # The library knows of steps that are left where it has not said that the program is complete.
    return End(0, None if said else {"reason": report.COMPLETED})


def main(arguments: Sequence[str]) -> int:
    """Run the program to its end and return the exit code to end with."""
    words = list(arguments)
    passed_on: dict[int, int] = {number: number for number in _FORWARDED}
    if words[:1] == [INTERRUPT]:
        passed_on[signal.SIGTERM] = signal.SIGINT
        del words[0]
    if words[:1] == ["--"]:
        del words[0]
    if not words or words == ["-m"] or (words[0].startswith("-") and words[0] != "-m"):
        sys.stderr.write(f"{USAGE}\n")
        return EXIT_USAGE
    report.show_log()
    termination_log = TerminationLog(Path(os.environ.get(ENV_TERMINATION_LOG) or TERMINATION_LOG))
    before = termination_log.read()
    code, told = _run([sys.executable, *_interpreter_options(), *words], passed_on)
    said = termination_log.read()
    end = judge(code, told, None if said == before else said)
    if end.message and _may_tell(end.message["reason"]):
        termination_log.write(end.message)
    return end.code


def _run(command: list[str], passed_on: Mapping[int, int]) -> tuple[int, bool]:
    """Run the command as a child until it ends: its exit code, and whether it was told to stop.

    `passed_on` says which signals the child gets, and as which; of those that tell it to stop, only the first: a second
    KeyboardInterrupt would come in the middle of the save that the first has begun.

    Signals are not handled but blocked and waited for: a blocked one is kept, for PID 1 too, so that there is no
    instant at which one is lost, or comes before there is a child to pass it on to.
    """
    waited = {*passed_on, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        # A child inherits what is ignored: SIGPIPE by Python, SIGINT by a shell that starts in the background.
        default = [signal.SIGPIPE, signal.SIGXFSZ, *SIGNALS]
        child = os.posix_spawn(command[0], command, os.environ, setsigmask=mask, setsigdef=default)
    except OSError as error:
        log.error("cannot start %s: %s", command[0], error, extra={"event": "not-started"})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return EXIT_NOT_STARTED, False
    told = stopped = False
    while True:
        came = signal.sigwaitinfo(waited)
        if came.si_signo == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return code, told
            continue
        stop = came.si_signo in SIGNALS
        told = told or stop
        # Of a process: what the terminal sends, it sends to the child as well.
        if came.si_code <= 0 and not (stop and stopped):
            stopped = stopped or stop
            os.kill(child, passed_on[came.si_signo])


def _reap(child: int) -> int | None:
    """Collect all that have ended, the orphans that PID 1 inherits too. The child's exit code, None while it runs."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # cannot be: the child is collected here and nowhere else
            raise RuntimeError(f"the program (PID {child}) has been collected by somebody else") from None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if not pid:
            return None


def _interpreter_options() -> list[str]:
    """The options that this interpreter was started with, such as ``-u``, for the program's."""
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return options[:-2] if options[-2:-1] == ["-m"] else options[:-1]


def _may_tell(reason: str) -> bool:
    """Of several launchers in one container, as under torchrun, the first tells, any a failure."""
    return reason == report.FAILED or os.environ.get(ENV_LOCAL_RANK, "0") == "0"


def _in_words(code: int) -> str:
    if code <= 128:
        return f"exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
