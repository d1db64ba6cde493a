"""MATLAB's `imresize(image, scale, 'bicubic')` on top of torch's antialiased interpolation.

The field makes its LR images with MATLAB: a = -0.5, kernel widened by the scale when shrinking, symmetric edges,
coordinates from the scale (not from the sizes), output size ceil(size * scale), rounded once at the end, halves away
from zero (`imresize` on doubles followed by `im2uint8`, as the papers' preparation scripts do). torch has that kernel
where `antialias=True`, but other edges. Padding symmetrically by a multiple of 1/scale keeps the two sampling grids
aligned, so cropping the result leaves what MATLAB gives.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sr_runner.errors import RequestError

_STRIP_ROWS = 128
"""Rows in or out, whichever are more, done in floating point at a time: they stay in the cache of a core."""


def imresize(image: Tensor, scale: Fraction | float) -> Tensor:
    """Resize `image` (N x C x H x W) as MATLAB's bicubic `imresize` does; the size becomes ceil(size * scale).

    uint8 in gives uint8 out, computed in float64 and rounded. Floating point in gives the same type out, computed in
    that type and neither rounded nor clipped, whatever its range. Raises `RequestError` where `scale` is not a
    positive fraction with a denominator of at most 64.
    """
    ratio = _ratio(scale)
    if ratio == 1:
        return image.clone()
    rows, columns = _Axis(image.shape[-2], ratio), _Axis(image.shape[-1], ratio)
    channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    result = image.new_empty(*image.shape[:2], rows.size_out, columns.size_out).contiguous(memory_format=layout)
    for start in range(0, rows.size_out, rows.strip_out):
        stop = min(start + rows.strip_out, rows.size_out)
        strip = _resize_strip(image.index_select(-2, rows.source(start, stop, image.device)), rows, columns)
        strip = strip[:, :, : stop - start]
        if image.dtype == torch.uint8:
            strip = strip.add_(0.5).clamp_(0, 255)  # the cast below truncates: together, halves round up
        result[:, :, start:stop] = strip
    return result


def imresize_uint8(image: npt.NDArray[np.uint8], scale: Fraction | float) -> npt.NDArray[np.uint8]:
    """`imresize` of one H x W x C uint8 array, to another of ceil(H * scale) x ceil(W * scale) x C."""
    if not image.flags.writeable:  # torch warns about read-only memory, and memory maps are
        image = image.copy()
    resized = imresize(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None], scale)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _ratio(scale: Fraction | float) -> Fraction:
    ratio = Fraction(scale).limit_denominator(64)
    if ratio <= 0 or abs(float(ratio) - float(scale)) > 1e-9:
        raise RequestError(f"scale={scale!r}: expected a positive fraction, such as 4, 1.5 or Fraction(1, 3).")
    return ratio


class _Axis:
    """Where the samples along one axis come from: sizes, padding and strips in step with both pixel grids."""

    def __init__(self, size: int, ratio: Fraction) -> None:
        self.size = size
        self.size_out = math.ceil(size * ratio)
        self.period, self.period_out = ratio.denominator, ratio.numerator
        reach = 2 * max(Fraction(1), 1 / ratio) + 1  # half the kernel's width, and one for the offset of the grids
        self.pad = math.ceil(reach / self.period) * self.period
        self.pad_out = self.pad * ratio.numerator // ratio.denominator
        self.strip_out = max(1, _STRIP_ROWS // max(self.period, self.period_out)) * self.period_out

    def source(self, start_out: int, stop_out: int, device: torch.device | None = None) -> Tensor:
        """Indices of the source pixels, mirrored at the edges, that outputs [start_out, stop_out) need, padded."""
        start = start_out // self.period_out * self.period
        stop = -(-stop_out // self.period_out) * self.period
        mirrored = torch.arange(start - self.pad, stop + self.pad, device=device) % (2 * self.size)
        return torch.minimum(mirrored, 2 * self.size - 1 - mirrored)


def _resize_strip(strip: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Resize `strip`, padded in its rows already; the result has the rows' padding cropped off."""
    source = columns.source(0, columns.size_out, strip.device)
    left, right = source[: columns.pad], source[columns.pad + columns.size :]
    padded = torch.cat([strip.index_select(-1, left), strip, strip.index_select(-1, right)], dim=-1)
    if not padded.is_floating_point():
        padded = padded.to(torch.float64)
    size = [side * rows.period_out // rows.period for side in padded.shape[-2:]]
    resized = functional.interpolate(padded, size=size, mode="bicubic", antialias=True)
    return resized[:, :, rows.pad_out : size[0] - rows.pad_out, columns.pad_out : columns.pad_out + columns.size_out]
