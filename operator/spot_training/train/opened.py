"""A checkpoint that is being loaded: what this rank has read of it and verified, before the program sees any of it."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from spot_training.train import checked, filed, sharding, state
from spot_training.train.files import DamagedError
from spot_training.train.patience import patiently
from spot_training.train.problem import in_words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spot_training.train.manifest import Entry, Manifest
    from spot_training.train.ranks import Ranks
    from spot_training.train.sharding import Spread

FILES: Final = "files"
"""The name, without its suffix, of the file that holds the files of parts which all ranks have alike."""
_COMMON: Final = "state"
_SPREAD: Final = sharding.CONTENTS.partition(".")[0]


@dataclass(frozen=True)
class Flaw:
    """Why a checkpoint cannot be loaded: it is `damaged`, or else its disk refuses to give it."""

    words: str
    damaged: bool = True

    @classmethod
    def of(cls, error: Exception) -> Flaw:
        """That of an error which came while it was read."""
        refused = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        return cls(f"cannot be read: {error}" if refused else in_words(error), damaged=not refused)


def open_share(
    entry: Entry, manifest: Manifest, ranks: Ranks, stack: contextlib.ExitStack
) -> tuple[Opened, Flaw | None]:
    """Open and verify this rank's share, and say what is wrong with it.

    What all read, and of what each rank has written every `ranks.size`-th: together the ranks verify all files.
    What this rank needs for certain is read in the same pass. Of the others, what may then be read is what was
    verified: `stack` keeps them open.
    """
    opened: dict[str, BinaryIO] = {}
    spread: list[bytes] = []
    contents: dict[str, dict[str, Any]] = {}
    needed = {_COMMON, _own(ranks.rank), sharding.stem(ranks.rank)}
    needed_files = {FILES, own_files(ranks.rank)}
    unpacked: dict[str, Path] = {}
    flaw = None

    def read(name: str) -> None:
        stem = name.partition(".")[0]
        file = stack.enter_context((entry.path / name).open("rb"))
        if stem in needed:
            contents[stem] = state.read_verified(file, manifest.files[name])
        elif stem in needed_files:
            unpacked[stem] = filed.unpack(file, manifest.files[name], stack)
        elif stem == _SPREAD:
            spread.append(checked.read(file, manifest.files[name]))
        else:
            checked.verify(file, manifest.files[name])
            opened[stem] = file

    try:
        for name in manifest.files:
            number = name.partition(".")[0].partition("-")[2]
            if not number or int(number) % ranks.size == ranks.rank:
                patiently(functools.partial(read, name))
        if _COMMON not in contents:
            flaw = Flaw(f"has no file of {_COMMON}")
    except (DamagedError, OSError, ValueError) as error:
        flaw = Flaw.of(error)
    return Opened(entry, manifest, ranks.rank, opened, contents, spread, unpacked), flaw


class Opened:
    """What this rank may read of a checkpoint that all ranks have found whole."""

    def __init__(
        self,
        entry: Entry,
        manifest: Manifest,
        rank: int,
        opened: Mapping[str, BinaryIO],
        contents: Mapping[str, dict[str, Any]],
        spread: list[bytes],
        unpacked: Mapping[str, Path],
    ) -> None:
        self._entry = entry
        self._manifest = manifest
        self._rank = rank
        self._opened = opened
        self._contents = contents
        self._spread = spread
        self._unpacked = unpacked

    @property
    def is_sharded(self) -> bool:
        """Whether it has spread tensors."""
        return bool(self._spread)

    def common(self) -> dict[str, Any]:
        """What all ranks have alike."""
        return self._contents[_COMMON]

    def own(self) -> dict[str, Any] | None:
        """What this rank had of its own; None where there was no such rank."""
        return self._contents.get(_own(self._rank))

    def files(self) -> Path | None:
        """Where the files are unpacked that parts have written which all ranks have alike."""
        return self._unpacked.get(FILES)

    def files_of_own(self) -> Path | None:
        """Where those are that this rank's own parts have written."""
        return self._unpacked.get(own_files(self._rank))

    def spread(self) -> list[Spread]:
        """Where the parts of the spread tensors are."""
        return sharding.decode(self._spread[0]) if self._spread else []

    def shard(self, rank: int) -> Mapping[Any, Any]:
        """What `rank` has written of the spread tensors.

        Another rank may have verified that file, perhaps on another machine, or this one some time ago: what it reads
        now is checked again. Raises DamagedError where that is something else: too late then for another checkpoint.
        """
        stem = sharding.stem(rank)
        if stem in self._contents:
            return self._contents[stem]
        name = next(name for name in self._manifest.files if name.startswith(f"{stem}."))
        return patiently(functools.partial(self._read, name, self._opened.get(stem)))

    def _read(self, name: str, opened: BinaryIO | None) -> dict[str, Any]:
        with contextlib.nullcontext(opened) if opened else (self._entry.path / name).open("rb") as file:
            return state.read_verified(file, self._manifest.files[name])


def own_files(rank: int) -> str:
    """The name, without its suffix, of the file that holds the files of a rank's own parts."""
    return f"{FILES}-{rank:05d}"


def _own(rank: int) -> str:
    return f"rank-{rank:05d}"
