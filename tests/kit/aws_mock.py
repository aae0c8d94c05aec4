"""AWS's own mock of its instance metadata service (github.com/aws/amazon-ec2-metadata-mock), built from its module."""

import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.kit import gotools, places
from tests.kit.process import bound, free_ports
from tests.kit.shell import wait_until

PROGRAM: Final = "ec2-metadata-mock"
STARTS: Final = 3


class TakenError(Exception):
    """The mock ended before it answered: somebody else was quicker to take the port."""


@contextmanager
def running(*words: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run `ec2-metadata-mock words…`, IMDSv2 only, for the length of the block; gives its `http://host:port`.

    Port 0 is any free one. All that asks may have what is announced (the mock would otherwise tell two only), and its
    clock is UTC: it writes local times and calls them GMT.
    """
    places.make_all()
    gotools.ensure({PROGRAM})
    for start in range(STARTS):
        try:
            process, address = _start(words, host, port or free_ports(1, host)[0])
        except TakenError:
            if port or start == STARTS - 1:
                raise
            continue
        try:
            yield address
        finally:
            process.terminate()
            process.wait(timeout=10)
        return


def _start(words: tuple[str, ...], host: str, port: int) -> tuple[subprocess.Popen[bytes], str]:
    address = f"http://{host}:{port}"
    options = [f"--hostname={host}", f"--port={port}", "--imdsv2", "--mock-ip-count=-1"]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes to it as long as it lives
    # A home of its own: it would read a configuration there.
    process = subprocess.Popen(
        bound([gotools.path(PROGRAM), *words, *options]),
        env={**os.environ, "TZ": "UTC", "HOME": str(places.BUILD)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def said() -> str:
        return os.pread(log.fileno(), 65_536, 0).decode(errors="replace")

    try:
        wait_until(
            f"{PROGRAM} at {address}",
            lambda: process.poll() is not None or _answers(address),
            timeout=20,
            every=0.02,
            seen=said,
        )
    except TimeoutError:
        process.kill()
        process.wait()
        raise
    if process.poll() is not None:
        raise TakenError(said())
    return process, address


def _answers(address: str) -> bool:
    """Whether somebody at the address refuses what shows no token, as the mock does."""
    try:
        urllib.request.urlopen(f"{address}/latest/meta-data", timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False
    return False
