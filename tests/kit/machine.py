"""Questions to the machine: what it has, what it lacks, what it can reach. Each answer decides a later step."""

import configparser
import os
import platform as _platform
import re
from dataclasses import dataclass
from pathlib import Path

from tests.kit import places
from tests.kit.shell import CommandError, run, step, which

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_CAP_SYS_RESOURCE = 24


@dataclass(frozen=True)
class Go:
    path: Path
    version: tuple[int, int]


def go() -> Go | None:
    """The Go command in PATH, or where Go's own installer puts it; None where there is none."""
    path = which("go") or Path("/usr/local/go/bin/go")
    try:
        # GOTOOLCHAIN=local: the version of this program itself, not of one it would fetch.
        output = run([path, "version"], env={"GOTOOLCHAIN": "local"}, cwd=Path("/"))
    except CommandError:
        return None
    found = re.search(r"go(\d+)\.(\d+)", output)
    return Go(path, (int(found[1]), int(found[2]))) if found else None


def platform() -> str:
    """The machine in Go's words, such as `linux/amd64`."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(_platform.machine(), _platform.machine())
    return f"linux/{architecture}"


def boot_id() -> str:
    """Names this boot: what was found out about the surroundings is asked again after the next one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def lacks_cap_sys_resource() -> bool:
    """Whether no process here can have CAP_SYS_RESOURCE, so that a privileged container cannot either."""
    status = Path("/proc/self/status").read_text()
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bounding is not None and not int(bounding[1], 16) >> _CAP_SYS_RESOURCE & 1


def has_cgroup_v1() -> bool:
    """Whether the controllers are in the old hierarchy: kubelet refuses to start there unless told not to."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def debian_mirror() -> str:
    """Where this machine gets Debian packages from. Raises RuntimeError where its apt names no such place."""
    lines = run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"])
    found = re.search(r"^Debian (\S+?)/?$", lines, re.MULTILINE)
    if not found:
        raise RuntimeError(
            "no image registry can be reached, and this machine's apt names no Debian mirror to make images from: "
            "run `apt-get update`, or make the published images reachable"
        )
    return found[1]


def apt_proxy() -> list[str]:
    """The proxy settings of this machine's apt, as lines of an apt.conf; most often none."""
    try:
        lines = run(["apt-config", "dump"]).splitlines()
    except CommandError:
        return []
    return [line for line in lines if re.match(r'Acquire::https?::Proxy.* ".+";', line)]


def pip_configuration() -> str:
    """What pip must know to reach its index from here, as a pip.conf; empty where it needs no telling."""
    settings = {"cert": "PIP_CERT", "index-url": "PIP_INDEX_URL", "extra-index-url": "PIP_EXTRA_INDEX_URL"}
    found: dict[str, str] = {}
    for file in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"):
        if file.exists():
            parser = configparser.ConfigParser(interpolation=None)
            parser.read(file)
            if parser.has_section("global"):
                found |= {key: value for key, value in parser.items("global") if key in settings}
    found |= {key: os.environ[name] for key, name in settings.items() if os.environ.get(name)}
    if "cert" in found:
        found["cert"] = str(CA_BUNDLE)  # the image has this machine's bundle under this name
    return "".join(["[global]\n", *(f"{key} = {value}\n" for key, value in found.items())]) if found else ""


def install_packages(*packages: str) -> None:
    """Install those Debian packages that are missing. Raises RuntimeError where that is not possible."""
    wanted = [package for package in packages if not _is_installed(package)]
    if not wanted:
        return
    if not which("apt-get") or os.geteuid() != 0:
        raise RuntimeError(
            f"needed and not installed: {', '.join(wanted)}. Install them, or run this as root on Debian."
        )
    log = places.LOGS / "apt.log"
    with step(f"installing Debian packages {' '.join(wanted)}", log):
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        wait = ["-o", "DPkg::Lock::Timeout=300"]
        install = ["apt-get", *wait, "install", "-y", "--no-install-recommends", *wanted]
        try:
            run(install, env=env, log=log, timeout=900)
        except CommandError:  # most likely there are no package lists, or old ones
            run(["apt-get", *wait, "update"], log=log, timeout=300)
            run(install, env=env, log=log, timeout=900)


def _is_installed(package: str) -> bool:
    try:
        return run(["dpkg-query", "-W", "-f", "${Status}", package]).endswith("install ok installed")
    except CommandError:
        return False
