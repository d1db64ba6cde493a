"""A tree of training state <-> tensors and JSON.

`flatten` splits what `state_dict()` methods return into named tensors (for a safetensors file) and a JSON document
that marks where each tensor belongs; `unflatten` puts them together again. Nothing is pickled, so nothing that a
file says can run. Tuples, counters, sets and mappings with other keys than strings survive the trip, since torch's
schedulers keep such things (`MultiStepLR.milestones` is a `Counter` of integers).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sr_runner.checkpoint.tensors import DTYPES

# A plain dictionary with this key stands for something that JSON has no word for.
MARK = "__sr_run__"


class UnsupportedStateError(TypeError):
    """State of a type that no checkpoint can hold; the message names where it sits."""


def flatten(tree: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split `tree` into tensors by path (`optimizer/model/head.weight/exp_avg`) and a JSON-able rest.

    Tensors are not copied. Raises `UnsupportedStateError` for an object that is neither a tensor nor plain data.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, {key: _encode(value, key, tensors) for key, value in tree.items()}


def unflatten(rest: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The inverse of `flatten`. Raises `KeyError` where the JSON names a tensor that is not there."""
    return {key: _decode(value, tensors) for key, value in rest.items()}


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    match value:
        case torch.Tensor():
            tensors[path] = value.detach()
            return {MARK: "tensor", "at": path}
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            # JSON has no word for these, and Python's `NaN` extension is not read everywhere.
            return value if math.isfinite(value) else {MARK: "float", "is": repr(float(value))}
        case torch.dtype():
            return {MARK: "dtype", "is": str(value)}
        case np.generic():
            return _encode(value.item(), path, tensors)
        case np.ndarray():
            tensors[path] = torch.from_numpy(np.ascontiguousarray(value))
            return {MARK: "array", "at": path}
        case Counter():
            return {MARK: "counter", "is": _pairs(value, path, tensors)}
        case Mapping():
            if all(isinstance(key, str) for key in value) and MARK not in value:
                return {key: _encode(item, f"{path}/{key}", tensors) for key, item in value.items()}
            return {MARK: "mapping", "is": _pairs(value, path, tensors)}
        case tuple():
            return {MARK: "tuple", "is": _items(value, path, tensors)}
        case list():
            return _items(value, path, tensors)
        case set() | frozenset():
            return {MARK: "set", "is": _items(sorted(value), path, tensors)}
    raise UnsupportedStateError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: "
        "state_dict() may return tensors, numbers, strings, and lists, tuples and dictionaries of them"
    )


def _items(values: Any, path: str, tensors: dict[str, torch.Tensor]) -> list[Any]:
    return [_encode(item, f"{path}/{index}", tensors) for index, item in enumerate(values)]


def _pairs(values: Mapping[Any, Any], path: str, tensors: dict[str, torch.Tensor]) -> list[Any]:
    return [
        [_encode(key, f"{path}/{index}.key", tensors), _encode(item, f"{path}/{index}", tensors)]
        for index, (key, item) in enumerate(values.items())
    ]


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(MARK):
        case None:
            return {key: _decode(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[value["at"]]
        case "array":
            return tensors[value["at"]].numpy()
        case "float":
            return float(value["is"])
        case "dtype":
            return {str(each): each for each in DTYPES}[value["is"]]
        case "tuple":
            return tuple(_decode(item, tensors) for item in value["is"])
        case "set":
            return {_decode(item, tensors) for item in value["is"]}
        case "counter":
            return Counter({_decode(key, tensors): _decode(item, tensors) for key, item in value["is"]})
        case "mapping":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in value["is"]}
        case unknown:
            raise ValueError(f"unknown kind of state {unknown!r}")
