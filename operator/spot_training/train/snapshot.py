"""A copy of captured states in host memory, that the program's next step does not change.

Captured states are containers made anew, with values that cannot change, and torch's tensors, which can. Only these
are copied, each into a buffer that is kept for the next copy: memory for one more state, taken once. From a GPU they
come through pinned memory, all at once, on the stream on which the program computes.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from typing import Any, Final

_UNCHANGING: Final = (bool, int, float, str, bytes, complex, type(None))


class HostCopies:
    """Takes copies of captured states; each stands until the next is taken."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def take(self, states: dict[str, Any]) -> dict[str, Any]:
        """The same states with copies of all tensors. Two that share all their memory share their copy, too."""
        torch = sys.modules.get("torch")
        if torch is None:
            return states
        taking = _Taking(torch, self._buffers)
        with torch.no_grad():
            copied: dict[str, Any] = taking.copy(states, "")
        for device in taking.devices:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = taking.buffers
        return copied


class _Taking:
    """One copy of all; `buffers` are those it uses, by the place of the tensor in the states."""

    def __init__(self, torch: Any, old_buffers: dict[str, Any]) -> None:
        self._torch = torch
        self._old_buffers = old_buffers
        self._seen: dict[tuple[Any, ...], Any] = {}
        self.buffers: dict[str, Any] = {}
        self.devices: set[Any] = set()

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
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            return tensor.detach().clone().cpu()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        buffer = self._seen.get(key) if tensor.numel() else None
        if buffer is None:
            cuda = tensor.device.type == "cuda"
            buffer = self._old_buffers.get(where)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
            buffer.copy_(tensor.detach(), non_blocking=cuda)
            if cuda:
                self.devices.add(tensor.device)
            self._seen[key] = self.buffers[where] = buffer
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(buffer, requires_grad=tensor.requires_grad)
        return buffer.detach().requires_grad_(tensor.requires_grad) if tensor.requires_grad else buffer
