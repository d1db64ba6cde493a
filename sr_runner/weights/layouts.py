"""The PyTorch layouts that others publish EDSR and MSRResNet in, and the way back to them.

EDSR-PyTorch: a bare state dict; `sub_mean` and `add_mean` are fixed 1x1 convolutions with -/+ range x mean as bias.
BasicSR: EDSR and MSRResNet under names of its own. Every tensor is the same as in sr-run, only its name differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sr_runner.models.layers import DIV2K_MEAN
from sr_runner.weights.shapes import MisfitError, count

RGB_RANGE = 255.0
"""What both codes train EDSR with; BasicSR's files do not state it, EDSR-PyTorch's do."""

State = dict[str, Tensor]

_WRAPPERS = ("module.", "_orig_mod.")
# How the names of tensors begin, (theirs, ours); `#` stands for a number. Each table is read in both directions.
_EDSR_PYTORCH = (
    ("head.0.", "head."),
    ("body.#.body.0.", "body.#.conv1."),
    ("body.#.body.2.", "body.#.conv2."),
    ("tail.0.#.", "upsampler.#."),
    ("tail.1.", "tail."),
)
_BASICSR_EDSR = (("conv_first.", "head."), ("upsample.#.", "upsampler.#."), ("conv_last.", "tail."))
_BASICSR_MSRRESNET = (
    ("conv_first.", "head."),
    ("upconv1.", "upsampler.0."),
    ("upconv2.", "upsampler.3."),
    ("conv_hr.", "hr_conv."),
    ("conv_last.", "tail."),
)


def unwrapped(state: Mapping[str, Tensor], *more: str) -> Iterator[State]:
    """The state as it is; then without the `module.` of DataParallel or the `_orig_mod.` of torch.compile, where every
    name begins with it; and so on, wrapper by wrapper.

    `more` are further prefixes to take off, such as the `model.` of a class that holds the network.
    """
    result = dict(state)
    while True:
        yield result
        prefix = next((p for p in (*_WRAPPERS, *more) if result and all(name.startswith(p) for name in result)), None)
        if prefix is None:
            return
        result = {name.removeprefix(prefix): tensor for name, tensor in result.items()}


def strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """Without any wrapper's prefix. (Not `model.`: ESRGAN's first code has networks whose names all begin so.)"""
    *_, innermost = unwrapped(state)
    return innermost


def is_edsr_pytorch(state: Mapping[str, Tensor]) -> bool:
    """No false positives among the layouts known here; MDSR, RCAN and RDN of that code lack one of these names."""
    return {"head.0.weight", "body.0.body.0.weight", "tail.0.0.weight", "tail.1.weight"} <= state.keys()


def from_edsr_pytorch(state: Mapping[str, Tensor]) -> tuple[State, float]:
    """(state of `models.EDSR`, its rgb_range, which follows from `sub_mean`)."""
    inner = {k: v for k, v in state.items() if not k.startswith(("sub_mean.", "add_mean."))}
    return _renamed(inner, _EDSR_PYTORCH), _range_of_sub_mean(state)


def to_edsr_pytorch(state: Mapping[str, Tensor]) -> State:
    """The state of a `models.EDSR` with rgb_range 255 in EDSR-PyTorch's names."""
    mean, identity = RGB_RANGE * torch.tensor(DIV2K_MEAN), torch.eye(3).view(3, 3, 1, 1)
    return {
        "sub_mean.weight": identity,
        "sub_mean.bias": -mean,
        **_renamed(state, _EDSR_PYTORCH, to_theirs=True),
        "add_mean.weight": identity,
        "add_mean.bias": mean,
    }


def basicsr_network(state: Mapping[str, Tensor]) -> str | None:
    """`edsr` or `msrresnet` where the names are BasicSR's for one of them."""
    if not {"conv_first.weight", "body.0.conv1.weight", "conv_last.weight"} <= state.keys():
        return None
    if {"conv_after_body.weight", "upsample.0.weight"} <= state.keys():
        return "edsr"
    return "msrresnet" if {"upconv1.weight", "conv_hr.weight"} <= state.keys() else None


def basicsr(network: str, state: Mapping[str, Tensor], *, to_theirs: bool = False) -> State:
    """BasicSR's state as one of `models.EDSR` (rgb_range 255) or `models.MSRResNet`; with `to_theirs` the way back."""
    if network == "msrresnet":
        return _renamed(state, _BASICSR_MSRRESNET, to_theirs=to_theirs)
    blocks = count(state, r"body\.\d+\.conv1\.weight")
    return _renamed(state, (*_BASICSR_EDSR, ("conv_after_body.", f"body.{blocks}.")), to_theirs=to_theirs)


def rescale_range(state: Mapping[str, Tensor], old: float, new: float) -> State:
    """The state under which an EDSR with rgb_range `new` computes what it did with `old`: biases x new / old.

    Everything else in the network is homogeneous, so its activations are scaled by the same factor throughout.
    """
    return {k: v * (new / old) if k.endswith(".bias") and new != old else v for k, v in state.items()}


def _range_of_sub_mean(state: Mapping[str, Tensor]) -> float:
    if "sub_mean.bias" not in state or "sub_mean.weight" not in state:
        return RGB_RANGE
    weight, bias = state["sub_mean.weight"].double(), state["sub_mean.bias"].double()
    mean = torch.tensor(DIV2K_MEAN, dtype=torch.float64)
    if weight.shape == (3, 3, 1, 1) and bias.shape == (3,):
        ratio = float(-(bias / mean).mean())
        rgb_range = float(round(ratio)) or ratio  # 255 or 1, also where the file was cast to half precision
        straight = torch.allclose(weight.view(3, 3), torch.eye(3, dtype=torch.float64), atol=1e-3)
        if straight and rgb_range > 0 and torch.allclose(bias, -rgb_range * mean, rtol=5e-3):
            return rgb_range
    raise MisfitError(
        "the weights look like those of EDSR-PyTorch, but sub_mean is not the DIV2K mean that sr-run's EDSR subtracts"
    )


def _renamed(state: Mapping[str, Tensor], table: Iterable[tuple[str, str]], *, to_theirs: bool = False) -> State:
    """Names that the table does not have are kept, so that a later check against the network's names finds them."""
    pairs = [(ours, theirs) if to_theirs else (theirs, ours) for theirs, ours in table]
    rules = [(re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new.replace("#", r"\1")) for old, new in pairs]
    result = {}
    for name, tensor in state.items():
        matches = ((pattern.match(name), new) for pattern, new in rules)
        result[next((match.expand(new) + name[match.end() :] for match, new in matches if match), name)] = tensor
    return result
