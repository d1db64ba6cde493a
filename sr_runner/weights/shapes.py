"""A network's hyperparameters, read from the names and shapes of its state (in sr-run's names)."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sr_runner.models import NETWORKS, Discriminator, Network
from sr_runner.models.wdsr import LINEAR

State = Mapping[str, Tensor]

CLASSES: dict[str, type[Network]] = {**NETWORKS, "discriminator": Discriminator}

# What changes a network's output and leaves no trace in the shapes of its weights, by network.
SHAPELESS = {
    name: tuple(key for key in ("res_block_scaling", "rgb_range") if key in inspect.signature(cls).parameters)
    for name, cls in CLASSES.items()
}

# Buffers that a state may lack: other layouts do not have them and nothing is computed from them.
OPTIONAL = re.compile(r".*\.num_batches_tracked")

_G, _V = "parametrizations.weight.original0", "parametrizations.weight.original1"


class MisfitError(ValueError):
    """Tensors look like a network's, but are not quite; the message names the tensor, and not the file."""


def recognise(state: State) -> str | None:
    """Which of `CLASSES` has a state of these names, judged by a few that only it has; or None."""
    marks = {
        "discriminator": ("blocks.0.conv.weight", "dense1.weight", "dense2.weight"),
        "msrresnet": ("head.weight", "body.0.conv1.weight", "upsampler.0.weight", "hr_conv.weight", "tail.weight"),
        "srresnet": ("head.weight", "head_act.weight", "body.0.bn1.weight", "upsampler.0.conv.weight", "tail.weight"),
        "wdsr_b": (f"head.{_V}", f"body.0.conv3.{_V}", f"tail.{_V}", f"skip.{_V}"),
        "wdsr_a": (f"head.{_V}", f"body.0.conv2.{_V}", f"tail.{_V}", f"skip.{_V}"),
        "edsr": ("head.weight", "body.0.conv1.weight", "upsampler.0.weight", "tail.weight"),
    }
    return next((name for name, keys in marks.items() if all(key in state for key in keys)), None)


def infer(network: str, state: State) -> dict[str, int | float]:
    """The hyperparameters of `network` that follow from the shapes: all but `SHAPELESS[network]`.

    Raises:
        MisfitError: a tensor is missing or of an impossible shape.
    """
    try:
        hyperparameters = _READERS[network](state)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise MisfitError(f"the weights look like those of {network}, but do not fit it: {reason}") from error
    check_shapes(network, hyperparameters, state)
    return hyperparameters


def check_shapes(network: str, hyperparameters: Mapping[str, Any], state: State) -> None:
    """Refuse a state that `network`, built with these hyperparameters, does not have exactly."""
    with torch.device("meta"):  # only shapes: nothing is allocated, however large the numbers are
        expected = CLASSES[network](**hyperparameters).state_dict()
    looks = f"the weights look like those of {network}, but"
    for name in (name for name in expected if not OPTIONAL.fullmatch(name)):
        if name not in state:
            raise MisfitError(f"{looks} lack {name}")
        tensor = state[name]
        if not tensor.is_floating_point():
            raise MisfitError(f"{looks} {name} is {tensor.dtype}, not floating point")
        if not torch.isfinite(tensor).all():
            raise MisfitError(f"{looks} {name} has values that are not finite")
        if tensor.shape != expected[name].shape:
            raise MisfitError(f"{looks} {name} is {shape_of(tensor)} where {shape_of(expected[name])} was expected")
    extra = [name for name in state if name not in expected]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise MisfitError(f"{looks} also hold {extra[0]}{more}")


def shape_of(tensor: Tensor) -> str:
    """`64x3x3x3`"""
    return "x".join(map(str, tensor.shape)) or "a single number"


def _by_pixel_shuffles(state: State) -> dict[str, int | float]:
    """EDSR, SRResNet and MSRResNet: a head of `num_filters`, and an upsampler of convolutions with pixel shuffles."""
    filters = _colour_head(state["head.weight"])
    shuffled = [v for k, v in state.items() if re.fullmatch(r"upsampler\.\d+(\.conv)?\.weight", k)]
    return {
        "scale": math.prod(_factor(weight, filters) for weight in shuffled),
        "num_filters": filters,
        "num_res_blocks": count(state, r"body\.\d+\.conv1\.weight"),
    }


def _wdsr(state: State) -> dict[str, int | float]:
    filters, wide = _colour_head(state[f"head.{_V}"]), state[f"body.0.conv1.{_V}"].shape[0]
    if wide % filters:
        raise ValueError(f"blocks widen {filters} channels to {wide}, which is not a multiple")
    return {
        "scale": _factor(state[f"tail.{_V}"], 3),
        "num_filters": filters,
        "num_res_blocks": count(state, rf"body\.\d+\.conv1\.{_V}"),
        "res_block_expansion": wide // filters,
    }


def _wdsr_b(state: State) -> dict[str, int | float]:
    filters, narrow = state[f"head.{_V}"].shape[0], state[f"body.0.conv2.{_V}"].shape[0]
    if narrow != int(filters * LINEAR):
        raise ValueError(f"blocks narrow {filters} channels to {narrow} instead of {int(filters * LINEAR)}")
    return _wdsr(state)


def _discriminator(state: State) -> dict[str, int | float]:
    filters = _colour_head(state["blocks.0.conv.weight"])
    side = math.isqrt(state["dense1.weight"].shape[1] // (8 * filters))
    return {"patch_size": 16 * side, "num_filters": filters}


_READERS = {
    "edsr": _by_pixel_shuffles,
    "wdsr_a": _wdsr,
    "wdsr_b": _wdsr_b,
    "srresnet": _by_pixel_shuffles,
    "msrresnet": _by_pixel_shuffles,
    "discriminator": _discriminator,
}


def _colour_head(weight: Tensor) -> int:
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"its first convolution is {shape_of(weight)}, but must take 3 colour channels")
    return weight.shape[0]


def _factor(weight: Tensor, channels: int) -> int:
    """The pixel shuffle after a convolution to `channels` x factor^2."""
    factor = math.isqrt(weight.shape[0] // channels)
    if factor < 1 or channels * factor**2 != weight.shape[0]:
        raise ValueError(f"{weight.shape[0]} channels cannot be shuffled to {channels}")
    return factor


def count(state: State, pattern: str) -> int:
    """Of how many tensors `pattern` is the whole name."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)
