"""Where the kit keeps things: outside the checkout, so that a fresh clone is quick where another was before.

`SPOT_TRAINING_CACHE` names another place. Everything under `bin/` and `images/` is keyed by version or by a
hash of what went in, and appears by an atomic rename; `state/` describes the cluster of this machine.
"""

import os
from pathlib import Path
from typing import Final

CACHE: Final = Path(
    os.environ.get("SPOT_TRAINING_CACHE") or Path.home() / ".cache" / "spot-training"
).absolute()
BIN: Final = CACHE / "bin"
IMAGES: Final = CACHE / "images"
BUILD: Final = CACHE / "build"
LOGS: Final = CACHE / "logs"
STATE: Final = CACHE / "state"
KUBECONFIG: Final = STATE / "kubeconfig"
CLUSTER_FILE: Final = STATE / "cluster.json"
"""What the running cluster was made of."""
SHARED: Final = STATE / "shared"
"""The directory that every worker mounts at /mnt/shared: a volume that outlives nodes."""


def make_all() -> None:
    """Make every directory that is missing."""
    for place in (BIN, IMAGES, BUILD, LOGS, STATE, SHARED):
        place.mkdir(parents=True, exist_ok=True)
    SHARED.chmod(0o777)
