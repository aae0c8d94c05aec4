"""`make bench-checkpoint`: what checkpoints survive, and what they cost.

What needs torch runs in the training image (examples/Dockerfile, built by the engine), with this checkout and a
directory of the real disk mounted. `make bench-checkpoint` does all; `python -m tests.bench.checkpoint kills` only the
parts that are named, with numbers of one's own.
"""

import argparse
import json
import math
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.bench.checkpoint.crashes import Crashes, record_program, try_crashes
from tests.bench.checkpoint.damage import damage_trials
from tests.bench.checkpoint.kills import kill_trials
from tests.bench.checkpoint.outages import OPTIONS, record_saves, try_outages
from tests.bench.report import ROOT, Report
from tests.kit import engine, install
from tests.kit.images import build_image
from tests.kit.shell import say

_RECORDINGS: Final = 10
"""Of programs that are killed at other instants of their saves, before the power fails."""
_FEWER: Final = 4
"""One in so many of the kills and damages is tried again with torch, where each takes longer."""
_MEAN_TIME_BETWEEN_INTERRUPTIONS: Final = 3600.0
"""Seconds, for the interval at which to save: far more often than spot machines are taken."""


def kills(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    found = kill_trials(directory, arguments.kills, arguments.seed)
    _show(found.torn_loads, found.older_than_acknowledged, found.not_loaded, found.passed_over)
    report.value("kill_trials", found.trials, "kills", ">= 1000")
    report.value("kills_within_a_save", found.within_a_save, "kills")
    report.value("saves_acknowledged", found.acknowledged, "saves")
    report.value("kill_torn_loads", len(found.torn_loads), "loads", "= 0")
    report.value("kill_older_than_acknowledged", len(found.older_than_acknowledged), "loads", "= 0")
    report.value("kill_not_loaded", len(found.not_loaded), "loads", "= 0")
    report.value("kill_passed_over", len(found.passed_over), "loads", "= 0")


def crashes(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    chance = random.Random(arguments.seed)
    found = Crashes()
    for number in range(_RECORDINGS):
        places = [directory / f"{word}-{number}" for word in ("recorded", "crashed")]
        for place in places:
            place.mkdir()
        record = record_program(places[0], chance)
        try_crashes(record, places[1], chance, found, arguments.crashes // _RECORDINGS)
    _show(found.torn_loads, found.older_than_acknowledged, found.not_loaded)
    report.value("crash_states", found.states, "states", ">= 1000")
    report.value("crash_instants", found.instants, "instants")
    report.value("crash_torn_loads", len(found.torn_loads), "loads", "= 0")
    report.value("crash_older_than_acknowledged", len(found.older_than_acknowledged), "loads", "= 0")
    report.value("crash_not_loaded", len(found.not_loaded), "loads", "= 0")


def outages(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    chance = random.Random(arguments.seed)
    found = Crashes()
    for options in OPTIONS:
        place = directory / options
        place.mkdir()
        events = record_saves(place, options)
        try_outages(events, place, options, chance, arguments.outages // len(OPTIONS), found)
    _show(found.torn_loads, found.older_than_acknowledged, found.not_loaded)
    report.value("outage_states", found.states, "states", ">= 1000")
    report.value("outage_torn_loads", len(found.torn_loads), "loads", "= 0")
    report.value("outage_older_than_acknowledged", len(found.older_than_acknowledged), "loads", "= 0")
    report.value("outage_not_loaded", len(found.not_loaded), "loads", "= 0")


def damage(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    found = damage_trials(directory, arguments.damages, arguments.seed)
    _show(found.loaded, found.unreported)
    report.value("damage_trials", sum(found.kinds.values()), "places", ">= 1000")
    report.value("damage_fell_back", found.outcomes["before"], "loads")
    report.value("bitflips_loaded", len(found.loaded), "loads", "= 0")
    report.value("damage_unreported", len(found.unreported), "loads", "= 0")


def torched(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    """Kills and damage again, where torch saves."""

    def found(trial: str, count: int) -> dict[str, Any]:
        words = ["--count", count, "--seed", arguments.seed, "--directory", "/bench"]
        program = ["python3", "-m", "tests.bench.checkpoint.torched", trial]
        told: dict[str, Any] = json.loads(
            _in_training_image(directory, *program, *map(str, words)).splitlines()[-1]
        )
        return told

    kills = found("kill_ranks", arguments.kills // _FEWER)
    bad = ("torn_loads", "older_than_acknowledged", "not_loaded", "passed_over")
    _show(*(kills[name] for name in bad))
    report.value("ranks_kill_trials", kills["trials"], "kills")
    report.value("ranks_kills_within_a_save", kills["within_a_save"], "kills")
    for name in bad:
        report.value(f"ranks_kill_{name}", len(kills[name]), "loads", "= 0")
    for name in ("alone", "shards"):
        damages = found(f"damage_{name}", arguments.damages // _FEWER)
        _show(damages["loaded"], damages["unreported"])
        report.value(f"torch_{name}_damage_trials", sum(damages["kinds"].values()), "places")
        report.value(f"torch_{name}_damage_fell_back", damages["outcomes"].get("before", 0), "loads")
        report.value(f"torch_{name}_bitflips_loaded", len(damages["loaded"]), "loads", "= 0")
        report.value(f"torch_{name}_damage_unreported", len(damages["unreported"]), "loads", "= 0")


def speed(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    words = ["--megabytes", arguments.megabytes, "--trials", arguments.trials]
    program = ["python3", "-m", "tests.bench.checkpoint.speed", "--directory", "/bench", *map(str, words)]
    samples: dict[str, list[float]] = json.loads(_in_training_image(directory, *program).splitlines()[-1])
    plain_save = median(samples["torch_save"])
    report.trials("torch_save_seconds", samples["torch_save"], "s")
    for way, name, goals in (
        ("", "", ("<= 0.05", "<= 3.5")),
        ("whole_", "whole_copy_", (None, None)),
    ):
        stall, added = samples[f"{way}stall"], samples[f"{way}added"]
        stalls = [one / saved for one, saved in zip(stall, samples["torch_save"], strict=True)]
        report.trials(f"{name}stall_seconds", stall, "s", baseline=plain_save)
        report.trials(f"{name}stall_ratio_to_torch_save", stalls, "ratio", goals[0])
        report.trials(f"{name}first_stall_seconds", samples[f"{way}first_stall"], "s", baseline=plain_save)
        report.trials(f"{name}added_by_save_seconds", added, "s", baseline=plain_save)
        slowdowns = [_slowdown(cost) for cost in added]
        report.trials(f"{name}slowdown_percent", slowdowns, "%", goals[1], baseline=_slowdown(plain_save))
        report.trials(f"{name}background_save_seconds", samples[f"{way}background"], "s")
    report.trials("peak_extra_memory_ratio", samples["memory"], "x state", "<= 1.1")
    report.trials("step_seconds", samples["step"], "s")
    report.trials("save_seconds", samples["write"], "s", baseline=median(samples["write_plain"]))
    report.trials("write_ratio_to_disk", samples["write_ratio"], "ratio", ">= 0.9")
    report.trials("load_seconds", samples["load"], "s", baseline=median(samples["load_plain"]))
    report.trials("load_ratio_to_disk", samples["load_ratio"], "ratio", ">= 0.9")
    report.trials("load_extra_memory_ratio", samples["load_memory"], "x state")


def interruptions(report: Report, arguments: argparse.Namespace, directory: Path) -> None:
    test = "tests/train_torch/test_twenty_interruptions.py"
    words = ["python3", "-m", "pytest", "-rA", "-c", "tests/train_torch/pytest.ini", test]
    output = _in_training_image(directory, "sh", "-c", f"{' '.join(words)}; true")
    found = re.findall(
        r"^(PASSED|FAILED|ERROR) .*?test_twenty_interruptions\.py::\w+\[(.*?)\]", output, re.MULTILINE
    )
    _show([] if found and all(word == "PASSED" for word, _ in found) else output.splitlines()[-20:])
    for word, name in found:
        report.value(f"bitwise_equal {name}", int(word == "PASSED"), "yes", "= 1")


_PARTS: Final[dict[str, Callable[[Report, argparse.Namespace, Path], None]]] = {
    part.__name__: part for part in (kills, crashes, outages, damage, torched, speed, interruptions)
}


def _slowdown(cost: float) -> float:
    """Percent of the time that saves cost which add `cost` seconds each, at Daly's interval for that cost."""
    mean = _MEAN_TIME_BETWEEN_INTERRUPTIONS
    ratio = cost / (2 * mean)
    interval = (
        math.sqrt(2 * cost * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost if cost > 0 else mean
    )
    return 100 * cost / interval


def _in_training_image(directory: Path, *command: str) -> str:
    """What a command prints that runs in the training image, with `directory` at /bench."""
    engine.ensure()
    build_image(install.TRAINING_IMAGE, ROOT / "examples" / "Dockerfile", ROOT)
    directory.chmod(0o777)
    return engine.docker(
        *("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp"),
        *("--volume", f"{ROOT}:/src:ro", "--volume", f"{directory}:/bench", "--workdir", "/src"),
        *("--env", "PYTHONPATH=/src/operator:/src", install.TRAINING_IMAGE, *command),
        timeout=1800,
    )


def _show(*lists: list[str]) -> None:
    for line in [line for lines in lists for line in lines][:20]:
        print(f"!! {line}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("parts", nargs="*", choices=[[], *_PARTS], default=[], help="all unless named")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--crashes", type=int, default=15_000, help="crash states to draw; many are alike")
    parser.add_argument("--outages", type=int, default=1000, help="power failures below ext4; needs root")
    parser.add_argument("--damages", type=int, default=2000)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the state that is saved")
    parser.add_argument("--trials", type=int, default=7, help="of what is measured in seconds")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build", help="on the disk that is to be tried"
    )
    arguments = parser.parse_args()
    arguments.directory.mkdir(exist_ok=True)
    report = Report("checkpoint")
    for name, part in _PARTS.items():
        if not arguments.parts or name in arguments.parts:
            with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=arguments.directory) as scratch:
                say(f"==> {name}")
                part(report, arguments, Path(scratch))
    report.finish()
    missed = report.missed()
    _show([f"missed: {line}" for line in missed])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
