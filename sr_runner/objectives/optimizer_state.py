"""An optimizer's state by parameter name, and back, laid out in memory as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

Parameters: TypeAlias = Mapping[str, torch.Tensor]
Layouts: TypeAlias = Mapping[str, Mapping[str, list[int]]]
"""Parameter -> place in its state (`Q/0`) -> strides."""

# How an optimizer computes, as against what: this machine's choice, not the checkpoint's.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# What torch's schedules write into groups.
_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}


def pack(optimizer: Optimizer, parameters: Parameters) -> dict[str, Any]:
    """What `unpack` takes: `optimizer` (the state by parameter name), `groups`, and, where there are any, `shared`
    (state of no parameter), `further` (what else the `state_dict` has) and `layouts`.

    A tensor of its parameter's shape has that parameter's layout, whichever this is by the time of a resume: fused
    kernels walk over both as one array and would mix up the values of a channels_last weight and a contiguous moment.
    Other tensors are contiguous. `layouts` has the strides of those that are neither, since the last bits of a matrix
    product depend on them.
    """
    packed = optimizer.state_dict()
    names = _names(optimizer, parameters)
    state = {names[index]: dict(entry) for index, entry in packed["state"].items() if isinstance(index, int)}
    result = {
        "optimizer": state,
        "groups": [group | {"params": [names[i] for i in group["params"]]} for group in packed["param_groups"]],
        "shared": {key: value for key, value in packed["state"].items() if not isinstance(key, int)},
        "further": {key: value for key, value in packed.items() if key not in ("state", "param_groups")},
        "layouts": _layouts(state, parameters),
    }
    return {key: value for key, value in result.items() if value or key in ("optimizer", "groups")}


def _layouts(state: Mapping[str, Any], parameters: Parameters) -> dict[str, dict[str, list[int]]]:
    layouts: dict[str, dict[str, list[int]]] = {}
    for name, entry in state.items():

        def note(place: str, value: torch.Tensor, name: str = name) -> torch.Tensor:
            if value.stride() != _usual_strides(value, parameters[name]) and _is_dense(value.shape, value.stride()):
                layouts.setdefault(name, {})[place] = list(value.stride())
            return value

        _mapped(note, entry)
    return layouts


def unpack(optimizer: Optimizer, parameters: Parameters, saved: Mapping[str, Any]) -> None:
    """Take over what `pack` gave. Raises `KeyError` where the parameters have other names, `ValueError` for layouts
    that do not fit."""
    current = optimizer.state_dict()["param_groups"]
    index = {name: position for position, name in enumerate(_names(optimizer, parameters))}
    groups = [
        group
        | {"params": [index[name] for name in group["params"]]}
        | {key: own[key] for key in IMPLEMENTATION if key in own}
        for group, own in zip(saved["groups"], current, strict=True)
    ]
    _load(optimizer, parameters, saved, saved["optimizer"], groups)


def adopt(optimizer: Optimizer, parameters: Parameters, saved: Mapping[str, Any]) -> bool:
    """For a fork: the state of `saved`, under this optimizer's own settings; whether it is of the same kind.

    An optimizer with settings that the saved one did not have is of another kind, and starts with none. What counts
    the steps in a group, rather than being set (`step`, `weight_sum`), belongs to the state.
    """
    names = _names(optimizer, parameters)
    index = {name: position for position, name in enumerate(names)}
    own = [dict(group) for group in optimizer.state_dict()["param_groups"]]
    if not all(optimizer.defaults.keys() <= group.keys() | {*IMPLEMENTATION} for group in saved["groups"]):
        _load(optimizer, parameters, {}, {}, own)
        return False
    makers = [vars(each)["__init__"] for each in type(optimizer).__mro__ if "__init__" in vars(each)]
    settings = {name for each in makers for name in inspect.signature(each).parameters}
    by_name = {name: group for group in saved["groups"] for name in group["params"]}
    for group in own:
        before: Mapping[str, Any] = next((by_name[names[i]] for i in group["params"] if names[i] in by_name), {})
        counted = (optimizer.defaults.keys() - settings) | (before.keys() - group.keys() - settings - _OF_SCHEDULES)
        group |= {key: before[key] for key in counted if key in before}
    _load(optimizer, parameters, saved, {n: s for n, s in saved["optimizer"].items() if n in index}, own)
    return True


def _load(
    optimizer: Optimizer, parameters: Parameters, saved: Mapping[str, Any], state: Mapping[str, Any], groups: list[Any]
) -> None:
    layouts: Layouts = saved.get("layouts", {})
    index = {name: position for position, name in enumerate(_names(optimizer, parameters))}
    laid_out: dict[int, Any] = {}
    for name, entry in state.items():

        def lay_out(place: str, value: torch.Tensor, name: str = name) -> torch.Tensor:
            strides = layouts.get(name, {}).get(place) or _usual_strides(value, parameters[name])
            if not _is_dense(value.shape, strides):
                raise ValueError(f"the layout of {name}/{place} is {strides}")
            return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)

        laid_out[index[name]] = _mapped(lay_out, entry)
    shared, further = (dict(saved.get(key, {})) for key in ("shared", "further"))
    optimizer.load_state_dict({**further, "state": laid_out | shared, "param_groups": groups})
    for name in state:  # torch makes every tensor one of its parameter's type
        types = _leaves(laid_out[index[name]])

        def retype(place: str, value: torch.Tensor, types: Mapping[str, torch.Tensor] = types) -> torch.Tensor:
            return types[place].to(value.device) if place in types and types[place].dtype != value.dtype else value

        optimizer.state[parameters[name]] = _mapped(retype, optimizer.state[parameters[name]])


def _usual_strides(value: torch.Tensor, parameter: torch.Tensor) -> tuple[int, ...]:
    if value.shape == parameter.shape:
        return parameter.stride()
    strides, stride = [], 1
    for size in reversed(value.shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def _is_dense(shape: torch.Size, strides: Any) -> bool:
    """Whether a tensor of these strides fills its memory without a gap or an overlap."""
    if not isinstance(strides, list | tuple) or len(strides) != len(shape):
        return False
    if not all(type(each) is int and 0 <= each < 2**62 for each in strides):
        return False
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _mapped(change: Callable[[str, torch.Tensor], torch.Tensor], value: Any, place: str = "") -> Any:
    """`value` with every tensor in it changed, which gets its place (`Q/0`) and itself."""
    if isinstance(value, torch.Tensor):
        return change(place, value)
    below = f"{place}/" if place else ""
    if isinstance(value, dict):
        return {key: _mapped(change, each, f"{below}{key}") for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, each, f"{below}{index}") for index, each in enumerate(value))
    return value


def _leaves(value: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def note(place: str, tensor: torch.Tensor) -> torch.Tensor:
        found[place] = tensor
        return tensor

    _mapped(note, value)
    return found


def _names(optimizer: Optimizer, parameters: Parameters) -> list[str]:
    """Parameter names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
