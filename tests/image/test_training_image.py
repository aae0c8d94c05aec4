"""The tests of the training library that need torch, run where torch is: in an image made from the example's."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cluster, engine, install
from tests.kit.process import bound


@pytest.fixture
def torch_tests() -> Iterator[subprocess.Popen[str]]:
    """They compute while others mostly wait: they get what those leave of the processors."""
    if not engine.answers():
        cluster.up()
    options = [
        *("--rm", "--network=none", "--read-only", "--tmpfs", "/tmp", "--cpu-shares=512"),
        *("--volume", f"{install.ROOT}:/src:ro", "--workdir", "/src", "--env", "PYTHONPATH=/src/operator"),
        # Ranks are forked from the tests: OpenMP does not survive that where it has begun threads.
        *("--env", "HOME=/tmp", "--env", "OMP_NUM_THREADS=1"),
    ]
    tests = ["--durations=5", "-c", "tests/train_torch/pytest.ini", "tests/train_torch"]
    pytest_there = ["/opt/venv/bin/python", "-m", "pytest", *tests]
    words: list[str | Path] = [engine.client(), "run", *options, install.torch_tests_image(), *pytest_there]
    begun = subprocess.Popen(
        bound(words, by=signal.SIGINT),
        env=os.environ | engine.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield begun
    # Not SIGTERM, which docker would pass on as well: the kernel keeps it from a first process without a handler.
    begun.send_signal(signal.SIGINT)
    begun.communicate()


def test_the_library_with_torch_in_the_training_image(torch_tests: subprocess.Popen[str]) -> None:
    output, _ = torch_tests.communicate(timeout=1800)
    print(output)
    assert torch_tests.returncode == 0, output
    assert re.search(r"\b[1-9]\d* passed", output), output
    assert "skipped" not in output, output
