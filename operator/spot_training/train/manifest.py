"""One checkpoint: a directory of files, and the manifest that says what they must be.

The manifest is written last, atomically, when all files are on the disk. A directory without one is no
checkpoint, only a save that was not finished. With one, it is a checkpoint as long as every file has the size
and the checksum that stand in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spot_training.train import files
from spot_training.train.files import DamagedError, Written
from spot_training.train.patience import patiently

FORMAT: Final = 2
MANIFEST: Final = "manifest.json"
UNREAD: Final = ""
"""The digest of a manifest that could not be read when it was listed: what is there later may be another."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint as a list names it: where it is, and the SHA-256 of its manifest when it was listed.

    `edition`: of an attempt's several saves at one step, 0, 1, 2 ...
    """

    root: Path
    fence: str
    step: int
    digest: str
    edition: int = 0

    @property
    def name(self) -> str:
        """Where it is inside its root: ``<fence>/step-<12 digits>``, and ``.<edition>`` from the second on."""
        return f"{self.fence}/{step_name(self.step, self.edition)}"

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.root / self.name


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of, and what was known when it was saved; `time` is seconds since the epoch."""

    fence: str
    attempt: int
    step: int
    time: float
    world_size: int
    extras: dict[str, Any]
    files: dict[str, Written]
    edition: int = 0

    def record(self) -> dict[str, Any]:
        """As it is written into ``manifest.json``."""
        return {
            "format": FORMAT,
            "fence": self.fence,
            "attempt": self.attempt,
            "step": self.step,
            "edition": self.edition,
            "time": self.time,
            "worldSize": self.world_size,
            "extras": self.extras,
            "files": {
                name: {"size": file.size, "checksum": file.checksum} for name, file in self.files.items()
            },
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Manifest:
        """Read a record. Raises DamagedError where it lacks something or names a file outside its directory."""
        try:
            if record["format"] != FORMAT:
                raise DamagedError(f"has format {record['format']}, and this version reads {FORMAT}")
            manifest = cls(
                fence=record["fence"],
                attempt=record["attempt"],
                step=record["step"],
                time=record["time"],
                world_size=record["worldSize"],
                extras=record["extras"],
                files={
                    name: Written(file["size"], file["checksum"]) for name, file in record["files"].items()
                },
                edition=record.get("edition", 0),  # checkpoints of before there were several say nothing
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"its manifest lacks something: {error!r}") from error
        if any(Path(name).name != name for name in manifest.files):
            raise DamagedError("its manifest names a file outside its directory")
        return manifest


def step_name(step: int, edition: int = 0) -> str:
    """The name of a checkpoint's directory."""
    return f"step-{step:012d}" + (f".{edition}" if edition else "")


def read_manifest(entry: Entry) -> Manifest:
    """The manifest of a listed checkpoint, exactly as it was listed. Raises DamagedError and OSError."""
    if entry.digest == UNREAD:
        raise OSError("could not be read when it was listed")
    try:
        data = patiently((entry.path / MANIFEST).read_bytes)
    except FileNotFoundError as error:
        raise DamagedError("is gone") from error
    manifest = Manifest.of(files.unseal(data, "its manifest"))
    if hashlib.sha256(data).hexdigest() != entry.digest:
        raise DamagedError("is not the one that was accepted: its manifest has another digest")
    said = (manifest.fence, manifest.step, manifest.edition)
    if said != (entry.fence, entry.step, entry.edition):
        raise DamagedError(f"holds {step_name(*said[1:])} of {manifest.fence}, not what its name says")
    return manifest
