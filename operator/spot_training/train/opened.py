"""A checkpoint that is being loaded: what this rank has read of it and verified, before the program sees any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

from spot_training.train import checked, sharding, state
from spot_training.train.files import DamagedError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

    from spot_training.train.manifest import Entry, Manifest
    from spot_training.train.ranks import Ranks
    from spot_training.train.sharding import Spread

_COMMON: Final = "state"
_CONTENTS: Final = sharding.CONTENTS.partition(".")[0]


def open_share(
    entry: Entry, manifest: Manifest, ranks: Ranks, stack: contextlib.ExitStack
) -> tuple[Opened, str | None]:
    """Open and verify this rank's share, and say what is wrong with it.

    What all read, and of what each rank has written every `ranks.size`-th: together the ranks verify all files.
    What this rank needs for certain is read in the same pass. Of the others, what may then be read is what was
    verified: `stack` keeps them open.
    """
    opened: dict[str, BinaryIO] = {}
    contents: dict[str, dict[str, Any]] = {}
    needed = {_COMMON, _own(ranks.rank), sharding.stem(ranks.rank)}
    problem = None
    try:
        for name, expected in manifest.files.items():
            stem = name.partition(".")[0]
            number = stem.partition("-")[2]
            if not number or int(number) % ranks.size == ranks.rank:
                file = stack.enter_context((entry.path / name).open("rb"))
                if stem in needed:
                    contents[stem] = state.read_verified(file, expected)
                else:
                    checked.verify(file, expected)
                    opened[stem] = file
        if _COMMON not in contents:
            problem = f"has no file of {_COMMON}"
    except (DamagedError, OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
    return Opened(entry, manifest, ranks.rank, opened, contents), problem


class Opened:
    """What this rank may read of a checkpoint that all ranks have found whole."""

    def __init__(
        self,
        entry: Entry,
        manifest: Manifest,
        rank: int,
        opened: Mapping[str, BinaryIO],
        contents: Mapping[str, dict[str, Any]],
    ) -> None:
        self._entry = entry
        self._manifest = manifest
        self._rank = rank
        self._opened = opened
        self._contents = contents

    @property
    def is_sharded(self) -> bool:
        """Whether it has spread tensors."""
        return _CONTENTS in self._opened

    def common(self) -> dict[str, Any]:
        """What all ranks have alike."""
        return self._contents[_COMMON]

    def own(self) -> dict[str, Any] | None:
        """What this rank had of its own; None where there was no such rank."""
        return self._contents.get(_own(self._rank))

    def spread(self) -> list[Spread]:
        """Where the parts of the spread tensors are."""
        return sharding.decode(self._opened[_CONTENTS].read()) if self.is_sharded else []

    def shard(self, rank: int) -> Mapping[Any, Any]:
        """What `rank` has written of the spread tensors.

        Another rank may have verified that file, perhaps on another machine. Raises DamagedError where this one
        reads something else: by then, too late for another checkpoint.
        """
        stem = sharding.stem(rank)
        if stem in self._contents:
            return self._contents[stem]
        if file := self._opened.get(stem):
            return state.read(file, file.name)
        name = next(name for name in self._manifest.files if name.startswith(f"{stem}."))
        with (self._entry.path / name).open("rb") as file:
            return state.read_verified(file, self._manifest.files[name])


def _own(rank: int) -> str:
    return f"rank-{rank:05d}"
