"""What more than one network is made of: convolutions with a named initialisation, upsamplers, argument checks."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError, check_choice

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of the DIV2K training images, in [0, 1], as EDSR-PyTorch, BasicSR and krasserm/super-resolution have it."""

INITIALIZATIONS = ("torch", "keras")
MOST = 8192
"""Blocks, filters, ...: more are a slip of the finger, and take all of a machine's memory before anything fails."""


class Network(nn.Module):
    """What sr-run's own networks have in common: each can be built again from its weights and `hyperparameters`."""

    SCALES: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    UPSAMPLER: ClassVar[tuple[str, ...]] = ("upsampler.",)
    """How the names of those tensors begin that belong to one scale; they are new when the rest is transferred to
    another scale."""
    TITLE: ClassVar[str]
    """The network's name in the paper, for messages."""
    scale: int
    num_filters: int
    num_res_blocks: int

    def keep(self, scale: int, initialization: str = "torch", **at_least_one: int) -> None:
        """Keep `scale` and counts (filters, blocks, ...) under their own names.

        Raises:
            RequestError: the network does not have the scale, a count is below 1, the initialisation is unknown.
        """
        check_choice("model.initialization", initialization, INITIALIZATIONS)
        if isinstance(scale, bool) or not isinstance(scale, int) or scale not in self.SCALES:
            *others, last = map(str, self.SCALES)
            raise RequestError(f"scale={scale}: expected {', '.join(others)} or {last} for {self.TITLE}")
        for name, value in at_least_one.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
                raise RequestError(f"model.{name}={value}: expected a whole number from 1 to {MOST} for {self.TITLE}")
            setattr(self, name, value)
        self.scale = scale

    def hyperparameters(self) -> dict[str, int | float]:
        """The arguments that build this network again: those of the constructor that are kept under their own name.

        `initialization` is not one, as weights replace it.
        """
        kept = vars(self)
        return {name: kept[name] for name in inspect.signature(type(self)).parameters if name in kept}


def check_number(network: str, name: str, value: float, *, most: float) -> float:
    """`value` as a float; refused where it is no number above 0 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise RequestError(f"model.{name}={value!r}: expected a number above 0 and at most {most} for {network}")
    return float(value)


def check_filters(count: int) -> None:
    """Refuses a discriminator of less than one filter, or of more than anybody means."""
    if not 1 <= count <= MOST:
        raise RequestError(f"objective.discriminator.num_filters={count}: expected 1 to {MOST}")


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


class Residual(nn.Sequential):
    """x + scaling * (the layers in turn)(x)."""

    def __init__(self, scaling: float, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        residual = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.add(x, residual, alpha=self.scaling)


def res_block(num_filters: int, scaling: float, initialization: str) -> Residual:
    """EDSR's block: x + scaling * conv(relu(conv(x))), without normalisation."""
    return Residual(
        scaling,
        conv1=conv2d(num_filters, num_filters, 3, initialization),
        relu=nn.ReLU(inplace=True),
        conv2=conv2d(num_filters, num_filters, 3, initialization),
    )


def upsampling_factors(scale: int) -> tuple[int, ...]:
    """The pixel shuffles that make up a scale: 2 -> (2,), 3 -> (3,), 4 -> (2, 2), 8 -> (2, 2, 2)."""
    return (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)


def subpixel_upsampler(num_filters: int, scale: int, initialization: str, *activation: nn.Module) -> nn.Sequential:
    """For each factor a 3x3 convolution, a pixel shuffle and the activation, if any, in one flat sequence."""
    layers: list[nn.Module] = []
    for factor in upsampling_factors(scale):
        convolution = conv2d(num_filters, num_filters * factor**2, 3, initialization)
        layers += [convolution, nn.PixelShuffle(factor), *activation]
    return nn.Sequential(*layers)


def mean_buffer() -> Tensor:
    """`DIV2K_MEAN` as 1 x 3 x 1 x 1, to be registered as a non-persistent buffer: it is a constant, not state."""
    return torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1)
