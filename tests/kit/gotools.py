"""Programs built from Go modules, at the versions of `versions.py`, kept in the cache by name and version.

Each module is built through a go.mod of its own, written here: `go install module@version` refuses modules
whose go.mod has `replace` lines (Kubernetes, etcd), and one common go.mod would let the modules choose each
other's versions. Kubernetes replaces its libraries by directories of its repository that its module does not
contain; their published versions are put in their place.
"""

import json
import os
import re
import shutil
from pathlib import Path

from tests.kit import machine, places, versions
from tests.kit.shell import CommandError, run, say, step
from tests.kit.versions import Program

PAUSE_SOURCE = Path(__file__).with_name("pause.go")


def path(name: str) -> Path:
    """Where the binary `name` lies, whether or not it has been built. Raises KeyError for unknown names."""
    if name == "pause":
        return places.BIN / f"pause-{versions.PAUSE_TAG}"
    for program in versions.PROGRAMS:
        if name in program.packages:
            return places.BIN / f"{name}-{program.version}"
    raise KeyError(f"no program {name!r} in tests/kit/versions.py")


def missing(names: set[str]) -> set[str]:
    """Those of `names` that are not in the cache."""
    return {name for name in names if not path(name).exists()}


def ensure(names: set[str]) -> None:
    """Build what is missing of `names`, module by module: one Go build uses all cores by itself."""
    wanted = missing(names)
    if not wanted:
        return
    go = _go()
    for program in versions.PROGRAMS:
        packages = {name: program.packages[name] for name in program.packages if name in wanted}
        if packages:
            _build(go, program, packages)
    if "pause" in wanted:
        _build_pause(go)


def module_dir(module: str) -> Path:
    """The unpacked source of one of the pinned modules, in Go's module cache."""
    program = next(program for program in versions.PROGRAMS if program.module == module)
    return Path(_download(_go(), module, program.version)["Dir"])


def _build(go: Path, program: Program, packages: dict[str, str]) -> None:
    """Build into a directory of its own, then rename each binary into place, so a kill leaves none half."""
    label = f"building {', '.join(packages)} {program.version}"
    work = places.BUILD / f"{program.module.replace('/', '_')}-{program.version}-{os.getpid()}"
    log = places.LOGS / f"build-{program.module.replace('/', '_')}.log"
    log.unlink(missing_ok=True)
    with step(label, log):
        work.mkdir(parents=True, exist_ok=True)
        (work / "go.mod").write_text(_go_mod(go, program, packages))
        flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in program.variables.items())])
        out = work / "out"
        out.mkdir(exist_ok=True)
        argv = [
            str(go),
            "build",
            "-mod=mod",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            flags,
            "-o",
            f"{out}/",
        ]
        _run_go([*argv, *packages.values()], work, log)
        for name, package in packages.items():
            built = out / _binary_name(package)
            built.rename(path(name))
        shutil.rmtree(work)


def _build_pause(go: Path) -> None:
    """The program that holds a pod's namespaces: it only has to sleep, reap and end when told."""
    with step("building pause"):
        target = path("pause")
        temporary = target.with_suffix(f".{os.getpid()}")
        argv = [str(go), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(temporary), str(PAUSE_SOURCE)]
        _run_go(argv, places.BUILD, places.LOGS / "build-pause.log")
        temporary.rename(target)


def _run_go(argv: list[str], work: Path, log: Path) -> None:
    """Run a Go command; where the checksum database cannot be reached at all, once more without it.

    A checksum that does not match is another matter, and always ends the build.
    """
    env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOFLAGS": "", "GOWORK": "off"}
    try:
        run(argv, env=env, cwd=work, log=log, timeout=3600)
    except CommandError as failure:
        unreachable = re.search(
            r"sum\.golang\.org.*(dial|lookup|timeout|refused|40[34]|50\d)", failure.output
        )
        if not unreachable or "SECURITY ERROR" in failure.output:
            raise
        say("    the Go checksum database cannot be reached: building without it")
        run(argv, env={**env, "GONOSUMDB": "*", "GOSUMDB": "off"}, cwd=work, log=log, timeout=3600)


def _go_mod(go: Path, program: Program, packages: dict[str, str]) -> str:
    lines = [
        "module spot-training.test/programs",
        f"go {versions.GO}",
        f"require {program.module} {program.version}",
        *(f"tool {package}" for package in packages.values()),
    ]
    if program.version == versions.KUBERNETES:
        source = Path(_download(go, program.module, program.version)["GoMod"]).read_text()
        staging = re.findall(r"^\s*(\S+) => \./staging/", source, re.MULTILINE)
        lines += [f"replace {name} => {name} {versions.KUBERNETES_STAGING}" for name in staging]
    return "\n".join(lines) + "\n"


def _download(go: Path, module: str, version: str) -> dict[str, str]:
    env = {"GOTOOLCHAIN": "auto", "GOFLAGS": "", "GOWORK": "off"}
    output = run([go, "mod", "download", "-json", f"{module}@{version}"], env=env, cwd=places.BUILD)
    return {key: str(value) for key, value in json.loads(output).items()}


def _binary_name(package: str) -> str:
    """The name Go gives to a package's binary: its last path element that is no major version."""
    *head, last = package.split("/")
    return head[-1] if re.fullmatch(r"v[0-9]+", last) else last


def _go() -> Path:
    """A Go command that can build the pinned modules.

    From 1.21 on, Go fetches by itself the toolchain that a go.mod asks for, through the module proxy. An older one,
    such as Debian 12's, fetches the same module when told to and is then done with.
    """
    found = machine.go()
    if found and found.version >= (1, 21):
        return found.path
    toolchain = places.CACHE / f"go-{versions.GO}"
    if (toolchain / "bin" / "go").exists():
        return toolchain / "bin" / "go"
    if not found:
        machine.install_packages("golang-go")
        found = machine.go()
        if not found:
            raise RuntimeError("Debian's golang-go is installed but there is no `go` in PATH")
        if found.version >= (1, 21):
            return found.path
    with step(f"fetching Go {versions.GO} with Go {'.'.join(map(str, found.version))}"):
        name = f"v0.0.1-go{versions.GO}.{machine.platform().replace('/', '-')}"
        source = Path(_download(found.path, "golang.org/toolchain", name)["Dir"])
        temporary = toolchain.with_suffix(f".{os.getpid()}")
        shutil.copytree(source, temporary)
        for directory in ("bin", "pkg/tool"):  # the module cache keeps no executable bits
            for file in (temporary / directory).rglob("*"):
                if file.is_file():
                    file.chmod(0o755)
        temporary.rename(toolchain)
    return toolchain / "bin" / "go"
