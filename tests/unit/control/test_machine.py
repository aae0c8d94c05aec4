"""The state machine as hypothesis drives it: few runs, and what it finds in as few steps as can be."""

import os

from hypothesis import settings

from tests.unit.control.machine import FencedMachine, Machine

# The thousands are walked (test_walks.py). `make soak` runs many more than `make test`, and not the same each time.
RUNS = int(os.environ.get("SPOT_TRAINING_RUNS", "60"))
SETTINGS = settings(
    max_examples=RUNS, stateful_step_count=40, derandomize="SPOT_TRAINING_RUNS" not in os.environ
)
TestOther = Machine.TestCase
TestOther.settings = SETTINGS
TestLibrary = FencedMachine.TestCase
TestLibrary.settings = SETTINGS
