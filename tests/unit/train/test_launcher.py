"""The launcher: an unchanged program hears signals from its first instant, and its end is told."""

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot_training.train.launcher import End, judge
from tests.unit.train.programs import Program, Surroundings

SIGTERM, SIGINT, SIGKILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
PR_SET_CHILD_SUBREAPER = 36

IMPORTING = """
import time
print("importing", flush=True)
time.sleep(60)
from spot_training.train import Training
"""
TRAINING = """
import time
from spot_training.train import Training
from tests.unit.train.programs import Weights
training = Training({"weights": Weights()}, total_steps=1000)
for step in training.steps():
    print("step", step, flush=True)
    time.sleep(0.01)
"""
INTERRUPTIBLE = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saved", flush=True)
"""
SAVING = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: print("heard", flush=True))
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saving", flush=True)
    sys.stdin.readline()
    print("saved", flush=True)
"""
DEAF = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    break
print("went on", flush=True)
sys.exit(int(line))
"""

Launch = Callable[..., Program]


@pytest.fixture
def launch(surroundings: Surroundings, tmp_path: Path) -> Launch:
    def run(
        source: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> Program:
        script = tmp_path / "script.py"
        script.write_text(source)
        words = ("-u", "-m", "spot_training.train", *options, str(script), *arguments)
        return Program(*words, env={**surroundings.environment(1), **(env or {})}, **more)

    return run


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_stop_before_training_has_begun_ends_it_at_once(
    launch: Launch, surroundings: Surroundings, number: signal.Signals
) -> None:
    program = launch(IMPORTING)
    program.read_until("importing")
    program.signal(number)
    assert program.end()[0] == 143
    assert surroundings.report() == {"reason": "Preempted"}


def test_a_stop_that_comes_before_the_program_itself_is_kept_for_it(
    launch: Launch, surroundings: Surroundings
) -> None:
    def told_from_the_start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SIGTERM})
        signal.raise_signal(SIGTERM)

    program = launch("import signal\nsignal.pthread_sigmask(signal.SIG_SETMASK, ())\n" + IMPORTING,
                     prepare=told_from_the_start)  # fmt: skip
    assert program.end()[0] == 143
    assert surroundings.report() == {"reason": "Preempted"}


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_program_of_the_librarys_saves_and_has_the_last_word(
    launch: Launch, surroundings: Surroundings, number: signal.Signals
) -> None:
    program = launch(TRAINING)
    program.read_until("step 3")
    for _ in range(5):
        program.signal(number)
    code, _, err = program.end()
    assert code == 143, err
    report = surroundings.report()
    assert report["reason"] == "Preempted"
    assert report["checkpointStep"] == report["step"] >= 4


def test_a_program_that_starts_workers_and_fails_when_told_ends_with_its_workers_word(
    launch: Launch, surroundings: Surroundings, tmp_path: Path
) -> None:
    """As torchrun does: it passes SIGTERM on, waits for its workers, and ends with 1."""
    (tmp_path / "worker.py").write_text(TRAINING)
    program = launch(f"""
import signal, subprocess, sys
worker = subprocess.Popen([sys.executable, {str(tmp_path / "worker.py")!r}])
signal.signal(signal.SIGTERM, lambda number, frame: worker.terminate())
worker.wait()
raise SystemExit(1)
""")
    program.read_until("step 3")
    program.signal(SIGTERM)
    code, _, err = program.end()
    assert code == 143, err
    report = surroundings.report()
    assert report["reason"] == "Preempted"
    assert report["checkpointStep"] == report["step"] >= 4


def test_script_arguments_options_and_output_are_the_programs_own(
    launch: Launch, surroundings: Surroundings, tmp_path: Path
) -> None:
    source = "import sys; print(sys.argv, sys.path[0], '-u' in sys.orig_argv, __name__); print('no', file=sys.stderr)"
    script = str(tmp_path / "script.py")
    seen = f"{[script, '-m', '--steps=3', '--']} {tmp_path} True __main__\n"
    assert launch(source, "-m", "--steps=3", "--").end() == (0, seen, "no\n")
    assert launch(source, "-m", "--steps=3", "--", options=("--",)).end() == (0, seen, "no\n")
    assert surroundings.report() == {"reason": "Completed"}


def test_a_module_is_run_as_python_would(surroundings: Surroundings) -> None:
    words = ("-m", "spot_training.train", "-m", "json.tool", "--help")
    code, out, _ = Program(*words, env=surroundings.environment(1)).end()
    assert (code, "usage: " in out, surroundings.report()) == (0, True, {"reason": "Completed"})


def test_sigterm_can_be_made_a_keyboard_interrupt(launch: Launch, surroundings: Surroundings) -> None:
    program = launch(INTERRUPTIBLE, options=("--interrupt",))
    program.read_until("ready")
    program.signal(SIGTERM)
    assert program.end()[:2] == (143, "saved\n"), "it ended with 0, but because it was told"
    assert surroundings.report() == {"reason": "Preempted"}


@pytest.mark.parametrize("option", [("--interrupt",), ()])
def test_more_signals_do_not_break_the_save_that_the_first_has_begun(
    launch: Launch, surroundings: Surroundings, option: tuple[str, ...]
) -> None:
    program = launch(SAVING, options=option, stdin=subprocess.PIPE)
    program.read_until("ready")
    program.signal(SIGTERM if option else SIGINT)
    program.read_until("saving")
    for number in (SIGTERM, SIGINT, SIGTERM):
        program.signal(number)
    program.signal(signal.SIGUSR1)  # others are passed on
    program.read_until("heard")
    assert program.process.stdin is not None
    program.process.stdin.write("go on\n")
    assert program.end()[:2] == (143, "saved\n")
    assert surroundings.report() == {"reason": "Preempted"}


def test_a_stop_is_heard_also_where_a_shell_has_it_ignored(
    launch: Launch, surroundings: Surroundings
) -> None:
    def in_the_background() -> None:
        signal.signal(SIGINT, signal.SIG_IGN)

    program = launch(INTERRUPTIBLE, prepare=in_the_background)
    program.read_until("ready")
    program.signal(SIGINT)
    assert program.end()[:2] == (143, "saved\n")
    assert surroundings.report() == {"reason": "Preempted"}


@pytest.mark.parametrize(("code", "message"), [(0, None), (3, "exit code 3")])
def test_a_program_that_does_not_hear_is_waited_for(
    launch: Launch, surroundings: Surroundings, code: int, message: str | None
) -> None:
    program = launch(DEAF, stdin=subprocess.PIPE)
    program.read_until("ready")
    program.signal(SIGTERM)
    assert program.process.stdin is not None
    program.process.stdin.write(f"{code}\n")
    assert program.end()[:2] == (code or 143, "went on\n")
    told = surroundings.report()
    assert (told["reason"], told.get("message")) == ("Failed" if code else "Preempted", message)


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("raise SystemExit(7)", 7, "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", 137, "killed by SIGKILL, perhaps for want of memory"),
        ("import os; os.abort()", 134, "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 15)", 143, "killed by SIGTERM"),
    ],
)
def test_how_it_failed_is_told(
    launch: Launch, surroundings: Surroundings, source: str, code: int, message: str
) -> None:
    assert launch(source).end()[0] == code
    assert surroundings.report() == {"reason": "Failed", "message": message}


def test_killed_while_training_it_keeps_what_it_had_told(launch: Launch, surroundings: Surroundings) -> None:
    source = TRAINING.replace("time.sleep(0.01)", "training.save(); import os; os.kill(os.getpid(), 9)")
    assert launch(source).end()[0] == 137
    report = surroundings.report()
    assert (report["reason"], report["checkpointStep"], report["totalSteps"]) == ("Failed", 0, 1000)
    assert report["message"].startswith("killed by SIGKILL")


def test_what_its_descendants_leave_behind_is_reaped(launch: Launch, surroundings: Surroundings) -> None:
    def inherit_orphans() -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    source = """
import os, pathlib, subprocess, sys, time
orphan = "import os; print(os.getpid(), flush=True)"
half = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}])"
made = int(subprocess.run([sys.executable, "-c", half], stdout=subprocess.PIPE, check=True).stdout)
while pathlib.Path("/proc", str(made)).exists():
    time.sleep(0.01)
print("reaped")
"""
    assert launch(source, prepare=inherit_orphans).end()[:2] == (0, "reaped\n")


@pytest.mark.parametrize("words", [(), ("-m",), ("--",), ("--steps", "3"), ("--interrupt",)])
def test_what_it_cannot_run_it_says(surroundings: Surroundings, words: tuple[str, ...]) -> None:
    code, _, err = Program("-m", "spot_training.train", *words, env=surroundings.environment(1)).end()
    assert code == 2
    assert err.startswith("usage: python -m spot_training.train ")


def test_in_a_container_of_several_the_first_tells_and_any_a_failure(
    launch: Launch, surroundings: Surroundings
) -> None:
    assert launch("", env={"LOCAL_RANK": "1"}).end()[0] == 0
    assert surroundings.termination_log.read_text() == ""
    assert launch("raise SystemExit(1)", env={"LOCAL_RANK": "1"}).end()[0] == 1
    assert surroundings.report()["reason"] == "Failed"


def test_a_message_of_an_earlier_run_is_not_this_ones(launch: Launch, surroundings: Surroundings) -> None:
    surroundings.termination_log.write_text(json.dumps({"reason": "Completed", "step": 5}))
    assert launch("raise SystemExit(1)").end()[0] == 1
    assert surroundings.report() == {"reason": "Failed", "message": "exit code 1"}


RUNNING = {"reason": "Running", "step": 7}


@pytest.mark.parametrize("reason", ["Completed", "Failed", "PeerLost", "VolumeFull"])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("code", [0, 1, 134, 143])
def test_a_last_word_of_the_library_stays(reason: str, told: bool, code: int) -> None:
    assert judge(code, told, {"reason": reason}) == End(code, None)


@pytest.mark.parametrize(
    ("code", "told", "said", "expected"),
    [
        (1, True, {"reason": "Preempted"}, End(143, None)),  # as torchrun ends when it was told
        (134, True, {"reason": "Preempted"}, End(143, None)),  # a runtime that crashed on its way out
        (1, False, {"reason": "Preempted"}, End(1, None)),
        (0, False, RUNNING, End(0, None)),  # it left its loop: not complete
        (0, True, RUNNING, End(143, {"reason": "Preempted", "step": 7})),
        (130, True, None, End(143, {"reason": "Preempted"})),
        (130, False, None, End(130, {"reason": "Failed", "message": "killed by SIGINT"})),
        (137, True, RUNNING, End(137, {"reason": "Failed", "step": 7,
                                       "message": "killed by SIGKILL, perhaps for want of memory"})),
        (255, False, None, End(255, {"reason": "Failed", "message": "exit code 255"})),
    ],
)  # fmt: skip
def test_how_an_end_is_judged(code: int, told: bool, said: dict[str, Any] | None, expected: End) -> None:
    assert judge(code, told, said) == expected


def test_the_interpreter_that_runs_the_program_is_this_one(launch: Launch) -> None:
    assert launch("import sys; print(sys.executable)").end()[1] == f"{sys.executable}\n"
