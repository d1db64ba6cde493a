"""The PyTorch layouts that others publish EDSR and MSRResNet in, and the way back to them.

EDSR-PyTorch: a bare state dict; `sub_mean` and `add_mean` are fixed 1x1 convolutions with -/+ range x mean as bias.
BasicSR: EDSR and MSRResNet under names of its own. Every tensor is the same as in sr-run, only its name differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sr_runner.models.layers import DIV2K_MEAN
from sr_runner.weights.shapes import MisfitError

RGB_RANGE = 255.0
"""What both codes train EDSR with; BasicSR's files do not say, EDSR-PyTorch's do."""

State = dict[str, Tensor]

_WRAPPERS = ("module.", "_orig_mod.")
_EDSR_PYTORCH = (
    (re.compile(r"head\.0\.(weight|bias)"), r"head.\1"),
    (re.compile(r"body\.(\d+)\.body\.0\.(weight|bias)"), r"body.\1.conv1.\2"),
    (re.compile(r"body\.(\d+)\.body\.2\.(weight|bias)"), r"body.\1.conv2.\2"),
    (re.compile(r"body\.(\d+)\.(weight|bias)"), r"body.\1.\2"),
    (re.compile(r"tail\.0\.(\d+)\.(weight|bias)"), r"upsampler.\1.\2"),
    (re.compile(r"tail\.1\.(weight|bias)"), r"tail.\1"),
)
_BASICSR_EDSR = (
    (re.compile(r"conv_first\.(weight|bias)"), r"head.\1"),
    (re.compile(r"body\.(\d+)\.conv([12])\.(weight|bias)"), r"body.\1.conv\2.\3"),
    (re.compile(r"upsample\.(\d+)\.(weight|bias)"), r"upsampler.\1.\2"),
    (re.compile(r"conv_last\.(weight|bias)"), r"tail.\1"),
)
_BASICSR_MSRRESNET = (
    (re.compile(r"conv_first\.(weight|bias)"), r"head.\1"),
    (re.compile(r"body\.(\d+)\.conv([12])\.(weight|bias)"), r"body.\1.conv\2.\3"),
    (re.compile(r"upconv1\.(weight|bias)"), r"upsampler.0.\1"),
    (re.compile(r"upconv2\.(weight|bias)"), r"upsampler.3.\1"),
    (re.compile(r"conv_hr\.(weight|bias)"), r"hr_conv.\1"),
    (re.compile(r"conv_last\.(weight|bias)"), r"tail.\1"),
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
    """(state of `models.EDSR`, its rgb_range, as `sub_mean` tells it)."""
    inner = {k: v for k, v in state.items() if not k.startswith(("sub_mean.", "add_mean."))}
    return _rename(inner, _EDSR_PYTORCH), _range_of_sub_mean(state)


def to_edsr_pytorch(state: Mapping[str, Tensor]) -> State:
    """The state of a `models.EDSR` with rgb_range 255 in EDSR-PyTorch's names."""
    mean = RGB_RANGE * torch.tensor(DIV2K_MEAN)
    result = {"sub_mean.weight": torch.eye(3).view(3, 3, 1, 1), "sub_mean.bias": -mean}
    for name, tensor in state.items():
        name = re.sub(r"^tail\.", "tail.1.", name)
        name = re.sub(r"^upsampler\.", "tail.0.", name)
        name = re.sub(r"^head\.", "head.0.", name)
        result[re.sub(r"\.conv([12])\.", lambda m: f".body.{2 * int(m[1]) - 2}.", name)] = tensor
    return result | {"add_mean.weight": torch.eye(3).view(3, 3, 1, 1), "add_mean.bias": mean}


def basicsr_network(state: Mapping[str, Tensor]) -> str | None:
    """`edsr` or `msrresnet` where the names are BasicSR's for one of them."""
    if not {"conv_first.weight", "body.0.conv1.weight", "conv_last.weight"} <= state.keys():
        return None
    if {"conv_after_body.weight", "upsample.0.weight"} <= state.keys():
        return "edsr"
    return "msrresnet" if {"upconv1.weight", "conv_hr.weight"} <= state.keys() else None


def from_basicsr(network: str, state: Mapping[str, Tensor]) -> State:
    """The state of `models.EDSR` (rgb_range 255) or `models.MSRResNet`."""
    if network == "msrresnet":
        return _rename(state, _BASICSR_MSRRESNET)
    blocks = sum(re.fullmatch(r"body\.\d+\.conv1\.weight", name) is not None for name in state)
    after = (re.compile(r"conv_after_body\.(weight|bias)"), rf"body.{blocks}.\1")
    return _rename(state, (*_BASICSR_EDSR, after))


def to_basicsr(network: str, state: Mapping[str, Tensor]) -> State:
    """The state of a `models.EDSR` with rgb_range 255, or of a `models.MSRResNet`, in BasicSR's names."""
    result = {}
    for name, tensor in state.items():
        name = re.sub(r"^head\.", "conv_first.", re.sub(r"^tail\.", "conv_last.", name))
        if network == "msrresnet":
            name = name.replace("hr_conv.", "conv_hr.")
            name = re.sub(r"^upsampler\.([03])\.", lambda m: f"upconv{1 + int(m[1]) // 3}.", name)
        else:
            name = re.sub(
                r"^upsampler\.", "upsample.", re.sub(r"^body\.\d+\.(?=weight|bias)", "conv_after_body.", name)
            )
        result[name] = tensor
    return result


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


def _rename(state: Mapping[str, Tensor], rules: tuple[tuple[re.Pattern[str], str], ...]) -> State:
    """Names that no rule knows are kept, so that whoever compares names with the network's finds them."""
    result = {}
    for name, tensor in state.items():
        matches = ((pattern.fullmatch(name), to) for pattern, to in rules)
        result[next((match.expand(to) for match, to in matches if match), name)] = tensor
    return result
