"""What more than one network is made of: convolutions with a named initialisation, upsamplers, argument checks."""

from __future__ import annotations

import inspect
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError, nearest

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of the DIV2K training images, in [0, 1], as EDSR-PyTorch, BasicSR and krasserm/super-resolution have it."""

INITIALIZATIONS = ("torch", "keras")


class Network(nn.Module):
    """What sr-run's own networks have in common: each can be built again from its weights and `hyperparameters`."""

    SCALES: ClassVar[tuple[int, ...]]
    UPSAMPLER: ClassVar[tuple[str, ...]]
    """How the names of those tensors begin that belong to one scale; they are new when the rest is transferred to
    another scale."""

    def hyperparameters(self) -> dict[str, int | float]:
        """The arguments that build this network again: those of the constructor that are kept under their own name.

        `initialization` is not one, as weights replace it.
        """
        kept = vars(self)
        return {name: kept[name] for name in inspect.signature(type(self)).parameters if name in kept}


def check_arguments(
    network: str, scale: int, scales: tuple[int, ...], initialization: str = "torch", **at_least_one: int
) -> None:
    """Refuse a scale that the network does not have, counts (filters, blocks, ...) below 1, unknown initialisations."""
    check_initialization(initialization)
    if isinstance(scale, bool) or not isinstance(scale, int) or scale not in scales:
        raise RequestError(f"scale={scale}: {network} can do {', '.join(map(str, scales[:-1]))} or {scales[-1]}")
    for name, value in at_least_one.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"model.{name}={value}: {network} needs a whole number of at least 1")


def check_number(network: str, name: str, value: float, *, above: float | None = None) -> float:
    """`value` as a float; refused where it is no finite number, or not above `above`."""
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not fits or (above is not None and value <= above):
        raise RequestError(
            f"model.{name}={value!r}: {network} needs a number{'' if above is None else f' above {above}'}"
        )
    return float(value)


def check_initialization(name: str) -> None:
    """Refuse a name that is not in `INITIALIZATIONS`."""
    if name not in INITIALIZATIONS:
        known = " or ".join(INITIALIZATIONS)
        raise RequestError(f"model.initialization={name}: expected {known}.{nearest(name, INITIALIZATIONS)}")


def conv2d(in_channels: int, out_channels: int, kernel_size: int, initialization: str = "torch") -> nn.Conv2d:
    """A convolution with bias that keeps the image size (zero padding).

    `torch` is `nn.Conv2d`'s own initialisation, which EDSR-PyTorch and the WDSR authors train with. `keras` is
    Glorot uniform with zero biases, which krasserm/super-resolution trains with.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    if initialization == "keras":
        keras_defaults_(layer)
    return layer


def keras_defaults_(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialise in place as Keras does by default: Glorot uniform kernel, zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def prelu(channels: int, initialization: str = "torch") -> nn.PReLU:
    """A PReLU with one slope per channel, which begins at 0.25 (`torch`) or 0 (`keras`)."""
    return nn.PReLU(channels, init=0.0 if initialization == "keras" else 0.25)


def upsampling_factors(scale: int) -> tuple[int, ...]:
    """The pixel shuffles that make up a scale: 2 -> (2,), 3 -> (3,), 4 -> (2, 2), 8 -> (2, 2, 2)."""
    return (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)


def subpixel_upsampler(num_filters: int, scale: int, initialization: str = "torch") -> nn.Sequential:
    """EDSR's upsampler: a 3x3 convolution and a pixel shuffle for each factor, at 0, 1, 2, 3, ..."""
    layers: list[nn.Module] = []
    for factor in upsampling_factors(scale):
        layers += [conv2d(num_filters, num_filters * factor**2, 3, initialization), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


def mean_buffer() -> Tensor:
    """`DIV2K_MEAN` as 1 x 3 x 1 x 1, to be registered as a non-persistent buffer: it is a constant, not state."""
    return torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1)
