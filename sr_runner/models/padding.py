"""What a network needs of the size of its input, and how it gets that.

A network whose input has to be a multiple of something, its window say, states it as an attribute, `multiple_of`. One
that pads for its windows itself may state their size as `tile_grid`: tiles of an image then begin where windows do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.errors import RequestError


def take_any_size(network: nn.Module) -> None:
    """Have a network that states `multiple_of` pad what it is given, and crop what it makes of that."""
    if (multiple := _stated(network, "multiple_of")) > 1:
        network.forward = functools.partial(_of_any_size, network.forward, multiple)


def grid_of(network: nn.Module) -> int:
    """LR pixels: where tiles begin at multiples of it, the windows in them are those of the whole image."""
    return math.lcm(_stated(network, "multiple_of"), _stated(network, "tile_grid"))


def upscale_padded(upscale: Callable[[Tensor], Tensor], lr: Tensor, right: int, below: int) -> Tensor:
    """`upscale(lr)`, for which `lr`, N x C x H x W, is padded by `right` and `below` pixels, whose SR is cropped off.

    By reflection, which reaches at most size - 1 pixels; what is missing then repeats the border.
    """
    if not right and not below:
        return upscale(lr)
    height, width = lr.shape[-2:]
    reflected = (0, min(right, width - 1), 0, min(below, height - 1))
    padded = F.pad(lr, reflected, "reflect")
    padded = F.pad(padded, (0, right - reflected[1], 0, below - reflected[3]), "replicate")
    sr = upscale(padded)
    scale = sr.shape[-1] // padded.shape[-1]
    return sr[..., : height * scale, : width * scale]


def _of_any_size(forward: Callable[[Tensor], Tensor], multiple: int, lr: Tensor) -> Tensor:
    height, width = lr.shape[-2:]
    return upscale_padded(forward, lr, -width % multiple, -height % multiple)


def _stated(network: nn.Module, name: str) -> int:
    value = getattr(network, name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(
            f"model: {type(network).__name__}.{name} is {value!r}: expected a whole number of LR pixels from 1"
        )
    return value
