"""Data that goes on where it had left off: the batches of a data set, in an order that is a function of seed and epoch.

A `DataLoader` draws its order from the global random numbers and reads ahead of the program: saved in the middle of an
epoch, neither can be found again. Here the position is counted in the batches that the program has been given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Iterator


class ResumableLoader:
    """Batches of `dataset`, which has a length: the rest of the epoch that it is in, each time it is iterated.

    Of each `batch_size` * `world_size` examples in the order of the epoch, this `rank` gets every `world_size`-th; the
    last few of an epoch, which are less than that, are left out. `options` are those of `DataLoader` (`num_workers`,
    `collate_fn`, ...). The position counts examples of all ranks: it fits on another number of them. Name it in the
    `state` of `Training`. Random changes of examples belong into `__getitem__` as a function of the index: what
    workers draw from their generators is not saved.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        if not 0 <= rank < world_size or batch_size < 1 or len(dataset) < batch_size * world_size:
            raise ValueError(
                f"{len(dataset)} examples make no batch of {batch_size} on each of {world_size} ranks (this is {rank})"
            )
        self._length = len(dataset)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._position = 0  # examples of this epoch that all ranks together have been given
        # A generator of its own: a DataLoader without one draws from the program's, more often when it is resumed.
        self._generator = torch.Generator()
        self._rest: list[list[int]] = []  # what the loader is to give when it is iterated next
        self._loader = DataLoader(dataset, batch_sampler=self._rest, generator=self._generator, **options)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, from 0."""
        return self._epoch

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self._length // (self._batch_size * self._world_size)

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of this epoch."""
        together = self._batch_size * self._world_size
        order = list(range(self._length))
        if self._shuffle:
            self._generator.manual_seed(self._seed * 1_000_003 + self._epoch)
            order = torch.randperm(self._length, generator=self._generator).tolist()
        starts = range(self._position, self._length - together + 1, together)
        self._rest[:] = [order[start : start + together][self._rank :: self._world_size] for start in starts]
        self._generator.manual_seed(self._seed * 1_000_003 + self._epoch)  # the workers' seeds come from it
        for batch in self._loader:
            self._position += together
            if self._length - self._position < together:
                self._epoch, self._position = (
                    self._epoch + 1,
                    0,
                )  # before the batch: a save after it is past it
            yield batch

    def endless(self) -> Iterator[Any]:
        """The batches of this epoch, of the next, and so on. What has been loaded before the first one counts."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch."""
        return {"epoch": self._epoch, "position": self._position, "length": self._length, "seed": self._seed}

    def load_state_dict(self, state: dict[str, int], /) -> None:
        """Go on from there. Raises ValueError where data or seed are others, so that the order is, too."""
        length, seed = state["length"], state["seed"]
        if (length, seed) != (self._length, self._seed):
            here = f"{self._length} and {self._seed}"
            raise ValueError(f"the checkpoint's data had {length} examples and the seed {seed}, these {here}")
        self._epoch, self._position = state["epoch"], state["position"]
