"""A copy of captured states in host memory, that the program's next step does not change.

Captured states are containers made anew, with values that cannot change, and torch's tensors, which can. Only these
are copied, each into a buffer that is kept for the next copy: memory for one more state, taken once. From a GPU they
come through pinned memory, all at once, on the stream on which the program computes.

What optimizers own, their parameters and moments, nothing changes between two of their steps in an ordinary program.
Where the program says that it is one, these are copied later, while its next forward and backward pass run, and
the optimizer's next step waits until that is done (CheckFreq, FAST '21, calls it the snapshot's phase).
"""

from __future__ import annotations

import copy
import ctypes
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from spot_training.train import pages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spot_training.train.state import Part

_UNCHANGING: Final = (bool, int, float, str, bytes, complex, type(None))
_WORTH_WAITING: Final = 1 << 16
"""Bytes of a tensor from which on it is copied later: below, noting it takes as long as copying it."""


class ChangedMeanwhileError(Exception):
    """A tensor that was to be copied beside the program's next step was changed by something else than that step."""


def overlapped_in(parts: Mapping[str, Any], *, background: bool) -> dict[str, Part]:
    """The optimizers whose tensors are copied later. Raises ValueError where a program cannot mean that."""
    if not background:
        raise ValueError("overlapped=True is for saves in the background: give background=True, too")
    torch = sys.modules.get("torch")
    found = {name: part for name, part in parts.items() if torch and isinstance(part, torch.optim.Optimizer)}
    if not found:
        raise ValueError("overlapped=True needs an optimizer of torch among the parts in state")
    return found


class HostCopies:
    """Takes copies of captured states; each stands until the next is taken.

    `optimizers`: what these own is copied by `finish`, in any thread; their next step waits for it.
    """

    def __init__(self, optimizers: Mapping[str, Any]) -> None:
        self._optimizers = list(optimizers.values())
        self._buffers: dict[str, Any] = {}
        self._late: list[_LateCopy] = []
        self._finished = threading.Event()
        self._finished.set()
        self._checking = threading.Lock()
        self._changed: str | None = None
        self._waited = 0.0
        for optimizer in self._optimizers:
            optimizer.register_step_pre_hook(self._before_step)

    def take(self, states: dict[str, Any]) -> dict[str, Any]:
        """The same states with copies of all tensors. Two that share all their memory share their copy, too."""
        self._waited, self._changed = 0.0, None
        torch = sys.modules.get("torch")
        if torch is None:
            return states
        taking = _Taking(torch, self._buffers, self._owned())
        with torch.no_grad():
            copied: dict[str, Any] = taking.copy(states, "")
        for device in taking.devices:
            torch.cuda.current_stream(device).synchronize()
        self._buffers, self._late = taking.buffers, taking.late
        if self._late:
            self._finished.clear()
        return copied

    def finish(self) -> None:
        """Copy what `take` has left; a second call does nothing."""
        if self._finished.is_set():
            return
        try:
            for late in self._late:
                late.copy()
        finally:
            self._finished.set()

    def check(self) -> None:
        """Raises ChangedMeanwhileError where something else than an optimizer's step has changed what was copied late.

        To be asked as late as can be: a change that is still under way is seen when it is over.
        """
        self._compare()
        if self._changed:
            raise ChangedMeanwhileError(
                f"{self._changed} was changed outside its optimizer's step while it was copied: "
                "leave out overlapped=True"
            )

    def waited(self) -> float:
        """The seconds that optimizers' steps have waited since the last `take`."""
        return self._waited

    def _before_step(self, *_: Any) -> None:
        if not self._late:
            return
        began = time.monotonic()
        self._finished.wait()
        self._waited += time.monotonic() - began
        self._compare()  # the last time that it can be told: the step changes all of it

    def _compare(self) -> None:
        with self._checking:
            self._changed = self._changed or next((late.where for late in self._late if late.changed), None)
            self._late = []

    def _owned(self) -> set[int]:
        """Where in memory the tensors are that only an optimizer's step changes."""
        tensors = [
            tensor
            for optimizer in self._optimizers
            for tensor in (
                *(parameter for group in optimizer.param_groups for parameter in group["params"]),
                *(value for state in optimizer.state.values() for value in state.values()),
            )
            if _is_plain(tensor) and tensor.device.type == "cpu"
        ]
        return {tensor.data_ptr() for tensor in tensors if tensor.nbytes >= _WORTH_WAITING}


class _LateCopy:
    """One tensor to be copied into its buffer later; its version tells whether it has been written to since."""

    def __init__(self, tensor: Any, buffer: Any, where: str) -> None:
        self.where = where
        self._tensor, self._buffer, self._version = tensor, buffer, tensor._version

    @property
    def changed(self) -> bool:
        return bool(self._tensor._version != self._version)

    def copy(self) -> None:
        # One thread of ours: torch's own copying would begin a team of threads beside the program's.
        ctypes.memmove(self._buffer.data_ptr(), self._tensor.data_ptr(), self._tensor.nbytes)


class _Taking:
    """One copy of all; `buffers` are those it uses, by the place of the tensor in the states."""

    def __init__(self, torch: Any, old_buffers: dict[str, Any], owned: set[int]) -> None:
        self._torch = torch
        self._old_buffers = old_buffers
        self._owned = owned
        self._seen: dict[tuple[Any, ...], Any] = {}
        self.buffers: dict[str, Any] = {}
        self.devices: set[Any] = set()
        self.late: list[_LateCopy] = []

    def copy(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in _UNCHANGING:
            return value
        if kind in (list, tuple):
            return kind(self.copy(item, f"{where}/{index}") for index, item in enumerate(value))
        if kind in (dict, OrderedDict):
            copied = kind((key, self.copy(item, f"{where}/{key!r}")) for key, item in value.items())
            if kind is OrderedDict:
                vars(copied).update(vars(value))
            return copied
        if isinstance(value, self._torch.Tensor):
            return self._copy_tensor(value, where)
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Any, where: str) -> Any:
        torch = self._torch
        if not _is_plain(tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            return tensor.detach().clone().cpu()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        buffer = self._seen.get(key) if tensor.numel() else None
        if buffer is None:
            cuda = tensor.device.type == "cuda"
            buffer = self._old_buffers.get(where)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
                pages.prefer_large(buffer.data_ptr(), buffer.nbytes)
            if tensor.data_ptr() in self._owned and tensor.is_contiguous():
                self.late.append(_LateCopy(tensor.detach(), buffer, where))
            else:
                buffer.copy_(tensor.detach(), non_blocking=cuda)
            if cuda:
                self.devices.add(tensor.device)
            self._seen[key] = self.buffers[where] = buffer
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(buffer, requires_grad=tensor.requires_grad)
        return buffer.detach().requires_grad_(tensor.requires_grad) if tensor.requires_grad else buffer


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor, none of a class of its own, whose memory is there."""
    torch = sys.modules["torch"]
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type != "meta"
