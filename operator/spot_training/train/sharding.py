"""State that is spread over the ranks (FSDP, tensor parallelism): each rank writes what it holds, any number reads it.

What is spread are torch's DTensors and ShardedTensors. `torch.distributed.checkpoint` names the states of models and
optimizers alike on every number of ranks, says which rank writes which part of a tensor that several hold, and which
saved parts a rank needs that holds other parts now. Its own files are not used: its list of contents is a pickle, which
runs code when it is read. Here each rank's parts are a file of `torch.save`, and the list of contents is JSON::

    shards.json         where each part of each spread tensor is
    shard-00000.pt ...  the parts that each rank has written

In the common state (``state.pt``) there is None in the place of each spread tensor.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spot_training.train.named import NamedModel, NamedOptimizer, is_spread, name_parts
from spot_training.train.state import UnsavableStateError, suffix, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from spot_training.train.ranks import Ranks
    from spot_training.train.state import Part

CONTENTS: Final = "shards.json"
Path = tuple[Any, ...]
"""Where a tensor is in the captured states: the name of the part, then keys and positions."""


class ShardingError(ValueError):
    """A spread tensor of the checkpoint has no place in this program, or another shape there."""


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, which begins at `offsets` and has the lengths `sizes`: entry `key` of `rank`'s file."""

    offsets: list[int]
    sizes: list[int]
    rank: int
    key: int


@dataclass(frozen=True)
class Spread:
    """A tensor in parts: its path, its type as torch writes it (``torch.float32``), its whole shape, its parts."""

    path: list[Any]
    dtype: str
    size: list[int]
    chunks: list[Chunk]

    @property
    def name(self) -> str:
        """Unlike any other tensor's."""
        return _name(self.path)


def separate(states: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, Any]]:
    """Captured states with None in the place of each spread tensor, and those tensors by their paths."""
    found: dict[Path, Any] = {}

    def leave_out(path: Path, value: Any) -> Any:
        if not is_spread(value):
            return value
        if not all(isinstance(key, (str, int)) for key in path):
            raise UnsavableStateError(f"{_name(path)} has a key that is neither a string nor a whole number")
        found[path] = value
        return None

    return _replace(states, leave_out), found


def refuse_spread(states: Mapping[str, Any]) -> None:
    """Raise UnsavableStateError, which names it, for a spread tensor where none can be."""
    found = [path for path, value in _leaves(states, ()) if is_spread(value)]
    if found:
        argument, *rest = found[0]
        where = argument + "".join(f"[{key!r}]" for key in rest)
        raise UnsavableStateError(
            f"{where} is spread over the ranks: name it in `state`, and say Training(..., sharded=True)"
        )


def join(states: Mapping[str, Any], tensors: Mapping[Path, Any]) -> dict[str, Any]:
    """What `separate` has taken apart."""
    joined: dict[str, Any] = _replace(states, lambda path, value: tensors.get(path, value))
    return joined


class Sharding:
    """Which rank writes which parts of the spread tensors. Agreed upon once, and again when something has changed."""

    def __init__(self, ranks: Ranks, compress: str | None) -> None:
        self._ranks = ranks
        self._compress = compress
        self._planner: Any = None
        self._paths: dict[str, list[Any]] = {}
        self._local: Any = None  # what this rank holds, and what it held when they last agreed
        self._before: Any = None
        self._agreed: tuple[list[Any], list[Spread]] | None = None

    def prepare(self, tensors: Mapping[Path, Any]) -> None:
        """Look at what this rank holds; without a word to the others."""
        from torch.distributed.checkpoint import DefaultSavePlanner

        self._planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._paths = {_name(path): list(path) for path in tensors}
        named = {_name(path): tensor for path, tensor in tensors.items()}
        self._planner.set_up_planner(named, is_coordinator=self._ranks.rank == 0)
        self._local = self._planner.create_local_plan()

    def give_up(self) -> None:
        """In place of `share`, where this rank has failed before."""
        self._ranks.largest((1, 0))

    def share(self) -> dict[str, Any]:
        """What this rank writes, by file name; nothing where another has given up. All ranks together.

        Raises ShardingError on all ranks where what they hold does not make whole tensors.
        """
        changed = self._agreed is None or self._local != self._before
        failed, any_changed = self._ranks.largest((0, int(changed)))
        if failed:
            return {}
        if any_changed:
            held = self._ranks.gather((self._local, self._paths))
            agreed, problem = self._ranks.from_first(
                _agree(self._planner, held) if self._ranks.rank == 0 else (None, None)
            )
            if problem:
                raise ShardingError(problem)
            self._agreed, self._before = agreed, self._local
        rank = self._ranks.rank
        plans, spread = self._agreed or ([], [])
        items = plans[rank].items
        parts = {key: _own_memory(self._planner.resolve_data(item)) for key, item in enumerate(items)}
        contents: dict[str, Any] = {stem(rank) + suffix(self._compress): parts} if parts else {}
        return {CONTENTS: encode(spread), **contents} if rank == 0 else contents


def stem(rank: int) -> str:
    """The name, before its suffixes, of the file of what `rank` has written of the spread tensors."""
    return f"shard-{rank:05d}"


def encode(spread: Iterable[Spread]) -> bytes:
    """The list of contents, as it is written into ``shards.json``."""
    records = [
        {
            "path": each.path,
            "dtype": each.dtype,
            "size": each.size,
            "chunks": [[chunk.offsets, chunk.sizes, chunk.rank, chunk.key] for chunk in each.chunks],
        }
        for each in spread
    ]
    return json.dumps({"tensors": records}).encode()


def decode(data: bytes) -> list[Spread]:
    """What `encode` has written."""
    return [
        Spread(each["path"], each["dtype"], each["size"], [Chunk(*chunk) for chunk in each["chunks"]])
        for each in json.loads(data)["tensors"]
    ]


def load(
    parts: Mapping[str, Part],
    saved: Mapping[str, Any],
    spread: Iterable[Spread],
    read: Callable[[int], Mapping[int, Any]],
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Read the parts of the spread tensors that this rank needs into the program's own memory.

    `saved` is the common state, `read` gives the parts that a rank has written. What the program has spread may
    have been saved whole, and the other way round. Returns parts and states to restore them with. Raises
    ShardingError where checkpoint and program do not fit.
    """
    tensors = {tuple(each.path): each for each in spread if each.path[0] in parts}
    holders = {path[0] for path in tensors}
    named = {name for name, state in saved.items() if name in holders or _is_named(state)}
    parts = name_parts(parts, named)
    current = {
        name: _places(part, saved[name])
        for name, part in parts.items()
        if name in saved and (name in holders or isinstance(part, (NamedModel, NamedOptimizer)))
    }
    saved = {name: _with_names(state, current.get(name)) for name, state in saved.items()}
    places = dict(_leaves(current, ()))
    whole = {
        path: value
        for path, value in _leaves(saved, ())
        if path not in tensors and is_spread(places.get(path))
    }
    missing = [_name(path) for path in tensors if path not in places]
    if missing:
        raise ShardingError(
            f"the checkpoint has sharded tensors for which this program has no place: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}; name the parts as the program that saved it did"
        )
    for key, (path, value) in enumerate(whole.items()):
        chunk = Chunk([0] * value.dim(), list(value.shape), -1, key)
        tensors[path] = Spread(list(path), str(value.dtype), list(value.shape), [chunk])
    given = dict(enumerate(whole.values()))
    targets = {path: places[path] for path in tensors}
    _read(targets, tensors, lambda rank: given if rank < 0 else read(rank))
    return parts, join(saved, targets)


def _read(
    targets: Mapping[Path, Any], tensors: Mapping[Path, Spread], read: Callable[[int], Mapping[int, Any]]
) -> None:
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    metadata = {}
    for path, each in tensors.items():
        here = list(targets[path].size())
        if here != each.size:
            raise ShardingError(
                f"{each.name} has the shape {each.size} in the checkpoint and {here} in the program"
            )
        chunks = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in each.chunks]
        dtype = getattr(torch, each.dtype.removeprefix("torch."))
        metadata[each.name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(each.size), chunks)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(
        {_name(path): tensor for path, tensor in targets.items()}, Metadata(metadata), False
    )
    by_name = {each.name: each for each in tensors.values()}
    by_rank: dict[int, list[tuple[Any, Chunk]]] = {}
    for item in planner.create_local_plan().items:
        chunk = by_name[item.storage_index.fqn].chunks[item.storage_index.index]
        by_rank.setdefault(chunk.rank, []).append((item, chunk))
    for rank, items in sorted(by_rank.items()):  # one file at a time: its content is in memory meanwhile
        content = read(rank)
        with torch.no_grad():
            for item, chunk in items:
                part = content[chunk.key]
                for dimension, (start, length) in enumerate(
                    zip(item.storage_offsets, item.lengths, strict=True)
                ):
                    part = part.narrow(dimension, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)


def _agree(
    planner: Any, plans: list[tuple[Any, dict[str, list[Any]]]]
) -> tuple[tuple[list[Any], list[Spread]] | None, str | None]:
    """Rank 0's decision: the plan of each rank, and where each part of each tensor will be; or what is wrong."""
    try:
        agreed, metadata = planner.create_global_plan([plan for plan, _ in plans])
    except (ValueError, AssertionError) as error:
        return None, f"the ranks' shards do not make whole tensors: {error}"
    paths = {name: path for _, mine in plans for name, path in mine.items()}
    where = {
        (item.index.fqn, item.index.index): (rank, key)
        for rank, plan in enumerate(agreed)
        for key, item in enumerate(plan.items)
    }
    spread = []
    for name, tensor in metadata.state_dict_metadata.items():
        chunks = [
            Chunk(list(chunk.offsets), list(chunk.sizes), *where[name, number])
            for number, chunk in enumerate(tensor.chunks)
        ]
        spread.append(Spread(paths[name], str(tensor.properties.dtype), list(tensor.size), chunks))
    return (agreed, spread), None


def _own_memory(tensor: Any) -> Any:
    """A part alone: `torch.save` would write all of the memory that it is a view of."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _is_named(saved: Any) -> bool:
    """Whether a state is an optimizer's by names, and not by the numbers of its parameters."""
    if not isinstance(saved, dict) or "param_groups" not in saved:
        return False
    return not any(
        isinstance(each, int) for group in saved["param_groups"] for each in group.get("params", ())
    )


def _places(part: Part, saved: Any) -> Any:
    if isinstance(part, NamedOptimizer) and saved["state"]:
        return part.places()
    return take(part)


def _with_names(saved: Any, current: Any) -> Any:
    """An optimizer's state that was saved with numbers for its parameters, with their names instead."""
    if (
        not isinstance(current, dict)
        or "param_groups" not in current
        or not saved["state"]
        or _is_named(saved)
    ):
        return saved
    groups = list(zip(saved["param_groups"], current["param_groups"], strict=True))
    names = {
        number: name for old, now in groups for number, name in zip(old["params"], now["params"], strict=True)
    }
    return {
        **saved,
        "state": {names[number]: state for number, state in saved["state"].items()},
        "param_groups": [{**old, "params": now["params"]} for old, now in groups],
    }


def _replace(value: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same containers anew, with what `leaf` makes of each value that is none."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(_replace(item, leaf, (*path, index)) for index, item in enumerate(value))
    if kind in (dict, OrderedDict):
        replaced = kind((key, _replace(item, leaf, (*path, key))) for key, item in value.items())
        if kind is OrderedDict:
            vars(replaced).update(vars(value))
        return replaced
    return leaf(path, value)


def _leaves(value: Any, path: Path) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    _replace(value, lambda where, each: found.append((where, each)), path)
    return found


def _name(path: Iterable[Any]) -> str:
    first, *rest = path
    return f"state[{first!r}]" + "".join(f"[{key!r}]" for key in rest)
