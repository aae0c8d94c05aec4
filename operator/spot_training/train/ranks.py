"""The ranks of one training program: one process, or all that `torch.distributed` has joined.

All decisions that end or save a program are made by all ranks together, between the same two steps: a rank that
left alone would leave its peers waiting in a collective. A peer that has died makes the next collective raise
(gloo sees the connection close; a machine that vanished, only after the process group's timeout).
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_SECONDS_FOR_GLOO: Final = 0.25

_SIGNS_OF_A_LOST_PEER: Final = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out waiting",
    "application timeout caused pair closure",
    "remote process exited",
    "nccl communicator was aborted",
    "socket timeout",
    "gloo/transport",
)


class PeerLostError(RuntimeError):
    """Another rank of this program is gone; nothing is wrong with this one."""


class Ranks(Protocol):
    """What saving and stopping need of the ranks. Every method is called by all ranks, in the same order."""

    rank: int
    size: int

    def largest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """For each place the largest value that any rank gave."""

    def gather(self, value: T) -> list[T]:
        """What each rank gave, by rank."""

    def from_first(self, value: T) -> T:
        """What rank 0 gave."""

    def part(self) -> None:
        """Wait until all have heard the last word; a peer that has left meanwhile has heard it."""


class Alone:
    """One process."""

    rank = 0
    size = 1

    def largest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Its own values."""
        return values

    def gather(self, value: T) -> list[T]:
        """Its own value."""
        return [value]

    def from_first(self, value: T) -> T:
        """Its own value."""
        return value

    def part(self) -> None:
        """Nobody to wait for."""


class TorchRanks:
    """The ranks of `torch.distributed`'s default process group.

    A group of its own over gloo carries the words between them where the default group is not gloo's: NCCL would
    carry them through the GPUs, behind all work that is queued there. Raises PeerLostError from every method.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._distributed = torch.distributed
        self.rank = int(self._distributed.get_rank())
        self.size = int(self._distributed.get_world_size())
        with _naming_lost_peers():
            gloo = self._distributed.get_backend() == "gloo"
            self._group = None if gloo else self._distributed.new_group(backend="gloo")
        atexit.register(_let_go, self._distributed.group.WORLD, self._group)

    def largest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """One all-reduce."""
        tensor = self._torch.tensor(values, dtype=self._torch.int64)
        with _naming_lost_peers():
            self._distributed.all_reduce(tensor, op=self._distributed.ReduceOp.MAX, group=self._group)
        return tuple(int(value) for value in tensor.tolist())

    def gather(self, value: T) -> list[T]:
        """One all-gather of pickled objects: the ranks trust each other, they run one program."""
        values: list[Any] = [None] * self.size
        with _naming_lost_peers():
            self._distributed.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: T) -> T:
        """One broadcast of a pickled object."""
        values: list[Any] = [value]
        with _naming_lost_peers():
            self._distributed.broadcast_object_list(values, src=0, group=self._group)
        said: T = values[0]
        return said

    def part(self) -> None:
        """A barrier, in which nothing can go wrong that still matters."""
        with contextlib.suppress(RuntimeError):
            self._distributed.barrier(group=self._group)


def _let_go(*_groups: Any) -> None:
    """Hold the process groups until the end of the program, and then give gloo's threads time.

    These let go of a collective's tensors some time after its end, and need the interpreter for it. One that comes when
    the interpreter is going down is killed inside C++, which aborts the process: exit code 134 in place of 143, or of 0
    (seen with torch 2.6 in one of a hundred exits). And who drops the last reference to a group waits for its threads
    without letting them have the interpreter, for ever if one of them needs it just then (seen once: a DDP model, the
    last to go after ``destroy_process_group``).
    """
    time.sleep(_SECONDS_FOR_GLOO)


def find_ranks(world_size: int) -> Ranks:
    """The ranks of this program. `world_size` is what the environment says.

    Raises RuntimeError where the environment speaks of several ranks and `torch.distributed` of none: each
    would take itself for rank 0 and write into the same place.
    """
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return TorchRanks(torch)
    if world_size > 1:
        raise RuntimeError(
            f"WORLD_SIZE={world_size}, but torch.distributed is not initialized: call "
            "torch.distributed.init_process_group(...) before Training(...). Programs that do not speak with each "
            "other through it cannot save together: make each a job of its own, with replicas: 1 (outside the "
            "operator, start each with WORLD_SIZE=1 and a directory of its own)"
        )
    return Alone()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception of the user's own collectives says that a peer is gone.

    Neither torch nor gloo has an exception for it (NCCL's is a DistBackendError, which is also for other
    troubles), so their words must do.
    """
    if isinstance(error, PeerLostError):
        return True
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS_OF_A_LOST_PEER)


@contextlib.contextmanager
def _naming_lost_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"a peer of this rank has died or cannot be reached: {error}") from error
