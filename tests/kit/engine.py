"""The Docker engine: the one that answers, or one that is started here.

An engine that answers is used as it is. Otherwise `dockerd` is started as a daemon of its own, with its log and
process id in the state directory, so that it outlives the command that started it and that `stop` ends that
very process and no other. `live-restore` lets the cluster's containers live on when the engine dies, so that
the next start finds them running.

Where no process can have CAP_SYS_RESOURCE, privileged containers (kind's nodes are) cannot be made as they
ask to be; a wrapper of runc then takes out what cannot be given.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Final

from tests.kit import machine, places
from tests.kit.shell import run, say, step, succeeds, wait_until, which

PACKAGES: Final = ("docker.io", "runc", "iptables", "jq")
_ENGINE: Final = places.STATE / "engine"
_PID_FILE: Final = _ENGINE / "dockerd.pid"
_RUNC_WRAPPER: Final = Path(__file__).with_name("runc-lessened")
REGISTRY_ANSWERS_SECONDS: Final = 20.0
_CLIENTS: Final = (None, Path("/usr/bin/docker"), Path("/usr/local/bin/docker"))


def answers() -> bool:
    """Whether an engine answers to one of this machine's docker clients."""
    _client.cache_clear()
    return _client() is not None


def docker(*args: str | Path, timeout: float = 600) -> str:
    """Run a docker command with a client that the engine understands; returns what it prints."""
    return run([client(), *args], timeout=timeout)


def client() -> Path:
    """A docker client that can talk to the engine. Raises RuntimeError where no engine answers."""
    found = _client()
    if not found:
        raise RuntimeError("no container engine answers: run `python -m tests.kit.cluster up`")
    return found


def environment() -> dict[str, str]:
    """The environment for programs that call `docker` by name, such as kind."""
    directory = _ENGINE / "client"
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "docker"
    if not link.is_symlink() or link.readlink() != client():
        link.unlink(missing_ok=True)
        link.symlink_to(client())
    return {"PATH": f"{directory}:{os.environ['PATH']}", "DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false"}


def ensure() -> None:
    """Find an engine, or install and start one."""
    if answers():
        return
    if not which("dockerd"):
        machine.install_packages(*PACKAGES)
        if answers():  # the package's own start script may have started it
            return
    machine.install_packages("runc", "iptables", "jq")
    with step("starting the Docker engine", _ENGINE / "dockerd.log"):
        _remove_remains()
        _start()


def started_here() -> bool:
    """Whether the engine was started by `ensure` and still runs."""
    return _our_pid() is not None


def stop() -> None:
    """End the engine that `ensure` started; another one is left alone."""
    pid = _our_pid()
    if pid is None:
        say("the Docker engine was not started from here: left as it is")
        return
    with step(f"stopping the Docker engine, process {pid}"):
        for container in docker("ps", "-q").split():  # with live-restore they would go on without it
            docker("kill", container)
        os.kill(pid, signal.SIGTERM)
        wait_until(
            "the end of dockerd", lambda: not _is_dockerd(pid), timeout=60, seen=lambda: f"process {pid} runs"
        )
        _PID_FILE.unlink(missing_ok=True)
        _client.cache_clear()


@cache
def _client() -> Path | None:
    candidates = [which("docker"), *_CLIENTS]
    for path in candidates:
        if (
            path
            and path.exists()
            and succeeds([path, "version", "--format", "{{.Server.Version}}"], timeout=20)
        ):
            return path
    return None


def _start() -> None:
    _ENGINE.mkdir(parents=True, exist_ok=True)
    configuration: dict[str, object] = {"live-restore": True, "log-opts": {"max-size": "20m"}}
    if machine.lacks_cap_sys_resource():
        # A copy outside the checkout: containers keep the path of their runtime for as long as they live.
        wrapper = _ENGINE / _RUNC_WRAPPER.name
        shutil.copy(_RUNC_WRAPPER, wrapper.with_suffix(".new"))
        wrapper.with_suffix(".new").rename(wrapper)
        configuration |= {"runtimes": {"lessened": {"path": str(wrapper)}}, "default-runtime": "lessened"}
    settings = _ENGINE / "daemon.json"
    settings.write_text(json.dumps(configuration, indent=2))
    log = _ENGINE / "dockerd.log"
    with log.open("ab") as sink:
        daemon = subprocess.Popen(
            ["dockerd", "--config-file", str(settings), "--pidfile", str(_PID_FILE)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not answers():
        if daemon.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(
                f"dockerd did not come up (exit code {daemon.returncode}); the end of {log}:\n{last}"
            )
        time.sleep(0.2)


def _remove_remains() -> None:
    """Take away process-id files of processes that are gone: their numbers may be others' by now."""
    for file, program in (
        (_PID_FILE, "dockerd"),
        (Path("/var/run/docker.pid"), "dockerd"),
        (Path("/var/run/docker/containerd/containerd.pid"), "containerd"),
    ):
        try:
            pid = int(file.read_text())
        except (FileNotFoundError, ValueError):
            continue
        if not _is_program(pid, program):
            file.unlink()


def _our_pid() -> int | None:
    try:
        pid = int(_PID_FILE.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if _is_dockerd(pid) else None


def _is_dockerd(pid: int) -> bool:
    return _is_program(pid, "dockerd")


def _is_program(pid: int, name: str) -> bool:
    """Whether a living process of this number and name is there; one that is dead and not yet reaped is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    command, _, rest = stat.partition("(")[2].rpartition(")")
    return command == name and rest.split()[0] not in "ZX"


def pull(image: str) -> bool:
    """Have the engine hold `image`: True where it has it or its registry gave it, False where none is reachable.

    A registry that can be reached gives the manifest within seconds, and the engine then says from where it is
    pulling; only so long is waited, and a "no" is remembered for this boot. The layers may take their time.
    """
    if succeeds([client(), "image", "inspect", image]):
        return True
    remembered = places.STATE / "unreachable-images.json"
    unreachable: dict[str, str] = json.loads(remembered.read_text()) if remembered.exists() else {}
    if unreachable.get(image) == machine.boot_id():
        return False
    log = places.LOGS / "pull.log"
    with step(f"asking for the published image {image}", log), log.open("wb") as sink:
        puller = subprocess.Popen([client(), "pull", image], stdout=sink, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + REGISTRY_ANSWERS_SECONDS
        while puller.poll() is None and time.monotonic() < deadline and b"Pulling" not in log.read_bytes():
            time.sleep(0.2)
        if puller.poll() is None and b"Pulling" not in log.read_bytes():
            puller.kill()
        if puller.wait(timeout=1800) == 0:
            return True
    say(f"    not to be had ({log.read_text(errors='replace').strip()[-200:] or 'no answer'})")
    remembered.write_text(json.dumps({**unreachable, image: machine.boot_id()}, indent=2))
    return False
