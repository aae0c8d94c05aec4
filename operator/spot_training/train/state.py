"""What a checkpoint holds: the program's named objects and the states of all random number generators.

An object is anything with ``state_dict`` and ``load_state_dict``, or a pair of functions that get and set its
state. With torch in the process a state is a file of `torch.save`, else one of JSON. Both are read back without
running code from the file: JSON has none, and `torch.load` is called with ``weights_only=True``. So that this
cannot fail only when it is too late, a state that could not be read back is refused when it is taken, by the
name of the value in question.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import sys
import types
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, runtime_checkable

from spot_training.train import checked, compression

if TYPE_CHECKING:
    from spot_training.train.files import Sink, Written

TORCH_SUFFIX: Final = ".pt"
JSON_SUFFIX: Final = ".json"
_TUPLE: Final = "spot.training/tuple"
"""Stands for a tuple in JSON, which has only lists: the only key of a dict with the items."""


@runtime_checkable
class Stateful(Protocol):
    """Models, optimizers, schedulers, samplers, scalers: torch's convention for objects with a state."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take up a state."""


Part = Stateful | tuple[Callable[[], Any], Callable[[Any], object]]
"""A named part of the program's state: an object with a state, or (get, set)."""


@dataclass(frozen=True)
class Files:
    """A named part of the program's state that is files: ``save(directory)`` writes, ``load(directory)`` reads them.

    The directory, a `Path`, is there while they run, where the system keeps temporary files (``TMPDIR``). Files and
    directories in it are saved, not their modes and times; no links.
    """

    save: Callable[[Path], object]
    load: Callable[[Path], object]


class UnsavableStateError(TypeError):
    """A value in the program's state could not be read back from a checkpoint."""


def check_parts(parts: Mapping[str, Part | Files], argument: str) -> dict[str, Part | Files]:
    """The parts, if each is one. Raises TypeError that names the one that is not."""
    for name, part in parts.items():
        pair = isinstance(part, tuple) and len(part) == 2 and all(callable(function) for function in part)
        if not isinstance(name, str) or not (pair or isinstance(part, (Files, Stateful))):
            raise TypeError(
                f"{argument}[{name!r}] is a {type(part).__name__}: give an object with state_dict and "
                "load_state_dict, a pair of functions (get, set), or Files(save, load)"
            )
    return dict(parts)


def capture(parts: Mapping[str, Part], argument: str) -> dict[str, Any]:
    """The states of all parts, ready to be written. Raises UnsavableStateError, which names the value."""
    states = {name: take(part) for name, part in parts.items()}
    return {name: _portable(state, f"{argument}[{name!r}]") for name, state in states.items()}


def take(part: Part) -> Any:
    """The state of a part as it gives it; of a scheduler of torch without the functions, which it has already."""
    if isinstance(part, tuple):
        return part[0]()
    states, torch = _unwrap(part).state_dict(), sys.modules.get("torch")
    # An SWALR of torch's gives its `anneal_func` (LambdaLR leaves its functions out by itself).
    return (
        _without_functions(states)
        if torch and isinstance(part, torch.optim.lr_scheduler.LRScheduler)
        else states
    )


def restore(parts: Mapping[str, Part], saved: Mapping[str, Any]) -> None:
    """Give each part its state. Raises KeyError that names a part of which the checkpoint has no state."""
    missing = [name for name in parts if name not in saved]
    if missing:
        raise KeyError(
            f"the checkpoint has no state of {', '.join(missing)}, only of {', '.join(saved) or 'nothing'}: name the "
            "parts as the program that saved it did"
        )
    for name, part in parts.items():
        if isinstance(part, tuple):
            part[1](saved[name])
        else:
            _unwrap(part).load_state_dict(saved[name])


def random_states() -> dict[str, Any]:
    """The states of the random number generators of Python, NumPy and torch, of those that are in use."""
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {"python": [version, list(words), gauss]}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy:
        legacy = numpy.random.get_state(legacy=False)
        states["numpy"] = {
            "key": legacy["state"]["key"].tolist(),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        }
    if torch:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random(states: Mapping[str, Any]) -> None:
    """Set the generators that both the checkpoint and this process have."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy and "numpy" in states:
        saved = states["numpy"]
        key = numpy.asarray(saved["key"], dtype="uint32")
        numpy.random.set_state(("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"]))
    if torch and "torch" in states:
        torch.set_rng_state(states["torch"])
        for device, state in zip(range(torch.cuda.device_count()), states.get("cuda", []), strict=False):
            torch.cuda.set_rng_state(state, device)


def suffix(compress: str | None = None) -> str:
    """The kind of file that this process writes: torch's where torch has been imported."""
    kind = TORCH_SUFFIX if "torch" in sys.modules else JSON_SUFFIX
    return kind + (compression.SUFFIXES[compress] if compress else "")


def write(
    content: Mapping[Any, Any] | bytes | Callable[[Sink], None], sink: Sink, compress: str | None = None
) -> None:
    """Write captured states in the format that `suffix` says; bytes as they are, and never compressed.

    What can be called writes by itself.
    """
    if isinstance(content, bytes):
        sink.write(content)
        return
    target = compression.Compressing(sink, compress) if compress else sink
    if callable(content):
        content(target)
    elif "torch" in sys.modules:
        import torch

        with _without_checksums(torch):
            torch.save(dict(content), target)
    else:
        # Not json.dump: it writes in thousands of small pieces.
        target.write(json.dumps(_marked(content)).encode())
    if isinstance(target, compression.Compressing):
        target.finish()


@contextlib.contextmanager
def _without_checksums(torch: Any) -> Iterator[None]:
    """Spare torch its own checksums in the file, which take longer than ours and which it does not look at."""
    serialization = torch.serialization
    if not hasattr(serialization, "set_crc32_options"):  # since torch 2.6
        yield
        return
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield
    finally:
        serialization.set_crc32_options(before)


def read(file: BinaryIO, name: str) -> dict[str, Any]:
    """Read states back, in the format that the file's name says. Tensors are read into host memory."""
    content = compression.expanded(file, name)
    if TORCH_SUFFIX in Path(name).suffixes:
        import torch

        states = torch.load(content, map_location="cpu", weights_only=True)
    else:
        states = json.loads(content.read(), object_hook=_unmarked)
    return dict(states)


def read_verified(file: BinaryIO, expected: Written) -> dict[str, Any]:
    """Read states back that are exactly what was written. Raises DamagedError where they are not."""
    return checked.use(file, expected, lambda content: read(content, file.name), _order(file.name))


def _order(name: str) -> Callable[[BinaryIO], list[tuple[int, int]]]:
    """Tells in which order a file of that name will be read: (start, end) of its parts, in bytes."""
    return _order_of_tensors if name.endswith(TORCH_SUFFIX) else lambda file: []


def _order_of_tensors(file: BinaryIO) -> list[tuple[int, int]]:
    """Torch reads them by their numbers, and has stored them in the order of the numbers as words."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        return []  # torch will say what is wrong with it
    tensors = [each for each in entries if each.filename.rpartition("data/")[2].isdecimal()]
    tensors.sort(key=lambda each: int(each.filename.rpartition("/")[2]))
    return [(each.header_offset, each.header_offset + each.compress_size) for each in tensors]


def _marked(value: Any) -> Any:
    """The same for JSON, with a sign where there was a tuple."""
    if isinstance(value, (list, tuple)):
        items = [_marked(item) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {key: _marked(item) for key, item in value.items()}
    return value


def _unmarked(read: dict[str, Any]) -> Any:
    return tuple(read[_TUPLE]) if read.keys() == {_TUPLE} else read


def portable_extras(extras: Mapping[str, Any]) -> dict[str, Any]:
    """The user's extras as JSON can hold them. Raises UnsavableStateError, which names the value."""
    converted = _convert(dict(extras), "extras", torch=None)
    return dict(converted)


def _unwrap(part: Stateful) -> Stateful:
    """The model inside DistributedDataParallel, so that a checkpoint fits on one rank as on many."""
    if type(part).__name__ == "DistributedDataParallel" and isinstance(
        inner := getattr(part, "module", None), Stateful
    ):
        return inner
    return part


def _without_functions(state: Any) -> Any:
    """A scheduler's state, and those of schedulers within it, as they are taken up again: by what is in them."""
    if type(state) is list:
        return [_without_functions(item) for item in state]
    if type(state) is not dict:
        return state
    functions = (types.FunctionType, types.MethodType)
    return {name: _without_functions(own) for name, own in state.items() if not isinstance(own, functions)}


def _portable(value: Any, where: str) -> Any:
    return _convert(value, where, torch=sys.modules.get("torch"))


def _convert(value: Any, where: str, torch: Any) -> Any:
    """The same value with NumPy's scalars made Python's. Raises UnsavableStateError for what has no way back."""
    kind = type(value)
    if kind in (bool, int, float, str) or value is None:
        return value
    if kind in (list, tuple):
        return kind(_convert(item, f"{where}[{index}]", torch) for index, item in enumerate(value))
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        if (
            torch is None
            and (strange := next((key for key in value if type(key) is not str), None)) is not None
        ):
            raise UnsavableStateError(f"{where} has the key {strange!r}: JSON knows only strings as keys")
        if torch is None and _TUPLE in value:
            raise UnsavableStateError(
                f"{where} has the key {_TUPLE!r}, which stands for a tuple: name it otherwise"
            )
        converted = kind(
            (_convert(key, where, torch), _convert(item, f"{where}[{key!r}]", torch))
            for key, item in value.items()
        )
        if kind is OrderedDict:
            vars(converted).update(vars(value))  # modules keep the versions of their states there
        return converted
    if torch is not None and kind is Counter:  # a scheduler's milestones
        return Counter({_convert(key, where, torch): value[key] for key in value})
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if torch is not None and _is_known_to_torch(value, torch):
        return value
    advice = "a list (`.tolist()`)" if torch is None else "a tensor, or lists, dicts, strings and numbers"
    raise UnsavableStateError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which cannot be read back: make it {advice}"
    )


def _is_known_to_torch(value: Any, torch: Any) -> bool:
    known = (torch.Tensor, torch.Size, torch.dtype, torch.device)
    return isinstance(value, known) or type(value) in (
        bytes,
        complex,
        set,
        *torch.serialization.get_safe_globals(),
    )
