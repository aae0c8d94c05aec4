"""Running commands and telling a person how far things are.

A step prints a line when it begins, one at least every 15 seconds while it lasts, and one with its duration
when it ends. Output of the commands in a step goes to a log file; its last line is shown with the progress,
its last lines are shown when the command fails.
"""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PROGRESS_SECONDS = 15.0
STARTS = 3
_print_lock = threading.Lock()


class CommandError(Exception):
    """A command ended with another code than 0, or ran past its time. `output` is what it wrote."""

    def __init__(self, argv: Sequence[str], why: str, output: str) -> None:
        super().__init__(f"`{' '.join(argv)}` {why}:\n{output.strip()}")
        self.output = output


def say(text: str) -> None:
    """Print one line whole, also where several threads print."""
    with _print_lock:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextmanager
def step(label: str, log: Path | None = None) -> Iterator[None]:
    """Announce `label`, show progress while the body runs (with the last line of `log`), end with seconds."""
    began = time.monotonic()
    ended = threading.Event()

    def show_progress() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            line = _last_lines(log, 1)[:100] if log else ""
            say(f"    {label} ... {time.monotonic() - began:.0f} s  {line}".rstrip())

    say(f"==> {label} ...")
    threading.Thread(target=show_progress, daemon=True).start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        ended.set()
        say(f"==> {label} ... {outcome} {time.monotonic() - began:.1f} s")


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    stdin_file: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
    log: Path | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    `env` is added to this process's environment. With `log`, both streams go there and the result is empty.
    Raises CommandError with what the command wrote.
    """
    words = [str(word) for word in argv]
    environment = {**os.environ, **env} if env else None
    try:
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as sink:
                done = completed(
                    words,
                    stdin=stdin_file or subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=cwd,
                    timeout=timeout,
                )
            if done.returncode:
                raise CommandError(words, f"exited {done.returncode}, see {log}", _last_lines(log, 30))
            return ""
        result = completed(
            words,
            input=stdin.encode() if stdin is not None else None,
            stdin=None if stdin is not None else (stdin_file or subprocess.DEVNULL),
            capture_output=True,
            env=environment,
            cwd=cwd,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as expired:
        raise CommandError(words, f"did not end within {timeout:.0f} s", _text(expired.output)) from expired
    except FileNotFoundError as missing:
        raise CommandError(words, "cannot be run", str(missing)) from missing
    if result.returncode:
        output = _text(result.stdout) + _text(result.stderr)
        raise CommandError(words, f"exited {result.returncode}", output)
    return _text(result.stdout)


def completed(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, begun again where the kernel could not start the program for a "bad address".

    Seen once in several thousand starts, from one of four threads that start programs side by side: Python's child
    shares the parent's memory until it becomes the program. Nothing had been started, so starting again is safe.
    """
    for _ in range(STARTS - 1):
        try:
            return subprocess.run(words, **options)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            say(f"==> {words[0]} could not be started ({error}), once more")
    return subprocess.run(words, **options)


def succeeds(argv: Sequence[str | Path], timeout: float = 60) -> bool:
    """Whether a command ends with 0 in time; for questions to the machine."""
    try:
        run(argv, timeout=timeout)
    except CommandError:
        return False
    return True


def pipe(producer: Sequence[str | Path], consumer: Sequence[str | Path], timeout: float = 600) -> str:
    """Run `producer | consumer` and return the consumer's output; fails where either fails."""
    left = [str(word) for word in producer]
    right = [str(word) for word in consumer]
    with subprocess.Popen(left, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as source:
        assert source.stdout is not None and source.stderr is not None
        try:
            output = run(right, stdin_file=source.stdout, timeout=timeout)
        except CommandError:
            source.kill()
            raise
        source.stdout.close()
        complaint = _text(source.stderr.read())
        if source.wait(timeout=timeout):
            raise CommandError(left, f"exited {source.returncode}", complaint)
    return output


def wait_until(
    what: str,
    condition: Callable[[], bool],
    *,
    timeout: float = 120,
    every: float = 0.3,
    seen: Callable[[], str],
) -> None:
    """Ask `condition` until it is true; a command that fails in it is a "not yet", as while a server starts.

    Raises TimeoutError that names `what` and tells what `seen` sees, and the last such failure.
    """
    deadline = time.monotonic() + timeout
    complaint = ""
    while True:
        try:
            if condition():
                return
            complaint = ""
        except CommandError as error:
            complaint = f"\n{error}"
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s; seen last:\n{seen()}{complaint}")
        time.sleep(every)


def together(*tasks: Callable[[], None]) -> None:
    """Run tasks side by side; when all have ended, raise the first error there was."""
    if not tasks:
        return
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
    for future in futures:
        future.result()


def which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _last_lines(log: Path | None, count: int) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = [line for line in _text(file.read()).splitlines() if line.strip()]
    return "\n".join(lines[-count:])
