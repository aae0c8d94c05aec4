"""The tests of the training library that need torch, run where torch is: in the example's image."""

import re

from tests.kit import engine, install
from tests.kit.shell import run


def test_the_library_with_torch_in_the_training_image() -> None:
    words = [
        *("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp"),
        *("--volume", f"{install.ROOT}:/src:ro", "--workdir", "/src", "--env", "PYTHONPATH=/src/operator"),
        install.TRAINING_IMAGE,
        *(
            "python3",
            "-m",
            "pytest",
            "--durations=5",
            "-c",
            "tests/train_torch/pytest.ini",
            "tests/train_torch",
        ),
    ]
    output = run([engine.client(), *words], env=engine.environment(), timeout=900)
    print(output)
    assert re.search(r"\b[1-9]\d* passed", output), output
    assert "skipped" not in output, output
