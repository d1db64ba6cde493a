"""JPEG compression, as an encoder and a decoder leave it: on the device, each picture with a quality of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sr_runner.data.degradations.canvas import Canvas, Draw, Floats, Integers, per_picture
from sr_runner.data.degradations.steps import check_range

# Annex K of ITU-T T.81, the tables that libjpeg scales.
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]

_TO_YCBCR = [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
_TO_RGB = [[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]]


@dataclass(frozen=True)
class Jpeg:
    """JPEG with a random `quality` (1 to 100) and chroma at half the resolution, 4:2:0, as libjpeg does it by default.

    The picture is rounded to 8 bits before and after, as files are.
    """

    quality: Sequence[float] = (30, 95)

    def __post_init__(self) -> None:
        check_range("quality", self.quality, at_least=1, at_most=100)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        return compress(canvas, draw.uniform(0, *self.quality))


def compress(canvas: Canvas, quality: Floats) -> Canvas:
    """Each picture as JPEG of its `quality` (N)."""
    height, width = canvas.pixels.shape[2:]
    rows, columns = (_repeated_edge(*sizes) for sizes in ((canvas.heights, height), (canvas.widths, width)))
    padded = canvas.gather(rows, columns).clamp(0, 1).mul(255).round()
    ycbcr = _transformed(padded, _TO_YCBCR)
    luma = _quantise(ycbcr[:, :1] - 128, _table(_LUMINANCE, quality, padded)) + 128
    chroma = _quantise(functional.avg_pool2d(ycbcr[:, 1:], 2), _table(_CHROMINANCE, quality, padded))
    # libjpeg's "fancy upsampling": weights of 3/4 and 1/4 along each axis.
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = _transformed(torch.cat([luma, chroma], dim=1), _TO_RGB)
    return canvas.with_pixels(rgb[:, :, :height, :width].round().clamp(0, 255).div(255))


def _repeated_edge(sizes: Integers, extent: int) -> Integers:
    """Source index of each place on a canvas of whole 16 x 16 blocks; beyond a picture's edge it is repeated."""
    return np.minimum(np.arange(math.ceil(extent / 16) * 16)[None], sizes[:, None] - 1)


def _table(table: list[list[int]], quality: Floats, like: Tensor) -> Tensor:
    """libjpeg's scaling of a quantisation table, one table (1 x 1 x 8 x 8) a picture."""
    percent = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    scaled = (per_picture(percent, like) * like.new_tensor(table) + 50) / 100
    return scaled.floor().clamp(1, 255)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (N x C x H x W) after a cosine transform of their 8 x 8 blocks, rounding by `table`, and its inverse."""
    count, channels, height, width = planes.shape
    blocks = planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    cosines = _cosines(planes)
    coefficients = cosines @ blocks @ cosines.T
    step = table.view(count, 1, 1, 1, 8, 8)
    restored = cosines.T @ ((coefficients / step).round() * step) @ cosines
    return restored.transpose(3, 4).reshape(count, channels, height, width)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal 8-point DCT-II."""
    k, x = np.mgrid[:8, :8]
    matrix = np.cos((2 * x + 1) * k * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix).to(like.device, like.dtype)


def _transformed(pixels: Tensor, matrix: list[list[float]]) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], dim=1)
