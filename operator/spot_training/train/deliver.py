"""``spot-training library DIRECTORY``: puts the training library where another container finds it.

In an init container that shares a volume with the training container, it brings the library into an image without it:
with the path of the volume in ``PYTHONPATH``, ``import spot_training.train`` works there on Python 3.10 and newer.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = "usage: spot-training library DIRECTORY"


def deliver(directory: Path) -> Path:
    """Copy the library into `directory`, over one that is there, and return the package's path. Raises OSError."""
    source = Path(__file__).parents[1]
    package = directory / source.name
    package.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "py.typed"):
        shutil.copyfile(source / name, package / name)
    target = package / "train"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        source / "train", target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
    )
    return package


def main(arguments: Sequence[str]) -> int:
    """Deliver it and return the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return 2
    try:
        package = deliver(Path(arguments[0]))
    except OSError as error:
        advice = "mount a volume that this user may write"
        sys.stderr.write(f"cannot put the library into {arguments[0]}: {error}; {advice}\n")
        return 1
    sys.stderr.write(f"the training library is in {package}\n")
    return 0
