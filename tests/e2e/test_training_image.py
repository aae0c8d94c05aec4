"""The tests of the training library that need torch, run where torch is: in an image made from the example's."""

import re
import subprocess


def test_the_library_with_torch_in_the_training_image(torch_tests: subprocess.Popen[str]) -> None:
    output, _ = torch_tests.communicate(timeout=1800)
    print(output)
    assert torch_tests.returncode == 0, output
    assert re.search(r"\b[1-9]\d* passed", output), output
    assert "skipped" not in output, output
