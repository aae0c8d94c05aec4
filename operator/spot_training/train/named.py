"""Models and optimizers that are spread over the ranks, with states whose names fit on any number of ranks.

The names are those of `torch.distributed.checkpoint`: a parameter's name in its model, whatever that is wrapped in.
What is spread are torch's DTensors (FSDP, tensor parallelism) and ShardedTensors (FSDP's first version).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spot_training.train.state import Part

_SPREAD: Final = (
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed._tensor", "DTensor"),  # where it was up to torch 2.4
    ("torch.distributed._shard.sharded_tensor", "ShardedTensor"),
)


def is_spread(value: Any) -> bool:
    """Whether a value is a tensor of which this rank holds a part."""
    modules = ((sys.modules.get(module), name) for module, name in _SPREAD)
    return isinstance(value, tuple(getattr(module, name) for module, name in modules if module))


def spread_parts(parts: Mapping[str, Part]) -> set[str]:
    """The names of the models and optimizers that are spread over the ranks."""
    torch = sys.modules.get("torch")
    if torch is None:
        return set()
    models = {name for name, part in parts.items() if _is_spread_model(part, torch)}
    inside = {id(own) for name in models for own in parts[name].parameters()}  # type: ignore[union-attr]
    optimizers = {
        name
        for name, part in parts.items()
        if isinstance(part, torch.optim.Optimizer)
        and any(is_spread(own) or id(own) in inside for own in _optimized(part))
    }
    return models | optimizers


class NamedModel:
    """A model whose state has the same names whatever it is wrapped in."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def state_dict(self) -> Any:
        """Spread tensors are the program's own or made from them, as the wrapper likes."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(self._model)

    def load_state_dict(self, state: Any, /) -> None:
        """Take up what `state_dict` gave on any number of ranks."""
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(self._model, state)


class NamedOptimizer:
    """An optimizer whose state is by the names of its model's parameters."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> Any:
        """The state; of one that has done no step yet, only its settings."""
        if self._optimizer.state:
            return self.places()
        groups = self._optimizer.param_groups
        return {"state": {}, "param_groups": [_without_parameters(group) for group in groups]}

    def places(self) -> Any:
        """The state, made where there is none yet: torch does a step for that, so only to load one into it."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self._model, self._optimizer)

    def load_state_dict(self, state: Any, /) -> None:
        """Take up what `state_dict` gave on any number of ranks."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        if state["state"]:
            set_optimizer_state_dict(self._model, self._optimizer, state)
            return
        for group, saved in zip(self._optimizer.param_groups, state["param_groups"], strict=True):
            group.update(_without_parameters(saved))


def name_parts(parts: Mapping[str, Part], also: Iterable[str] = ()) -> dict[str, Part]:
    """The parts, but the models and optimizers that are spread, and `also` these, with names for their states.

    Raises TypeError for an optimizer whose model is not among the parts.
    """
    named = dict(parts)
    for name in [each for each in spread_parts(parts) | set(also) if each in parts]:
        import torch

        part = parts[name]
        if isinstance(part, torch.nn.Module):
            named[name] = NamedModel(part)
        elif isinstance(part, torch.optim.Optimizer):
            named[name] = NamedOptimizer(_model_of(name, part, parts.values()), part)
    return named


def _is_spread_model(part: Part, torch: Any) -> bool:
    # FSDP's first version has no DTensors for parameters, but a class of its own around the module.
    return isinstance(part, torch.nn.Module) and (
        any(type(module).__name__ == "FullyShardedDataParallel" for module in part.modules())
        or any(is_spread(tensor) for tensor in (*part.parameters(), *part.buffers()))
    )


def _optimized(optimizer: Any) -> Iterator[Any]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _model_of(name: str, optimizer: Any, parts: Iterable[Part]) -> Any:
    import torch

    wanted = {id(parameter) for parameter in _optimized(optimizer)}
    models = (part for part in parts if isinstance(part, torch.nn.Module))
    model = next((each for each in models if wanted <= {id(own) for own in each.parameters()}), None)
    if model is None:
        raise TypeError(f"state[{name!r}] is the optimizer of a sharded model: name that model in state, too")
    return model


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
