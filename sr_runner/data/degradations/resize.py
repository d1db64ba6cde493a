"""Resizing with random factors and filters, each picture to a size of its own.

Resampling along an axis is a product with a small matrix; the matrices of a batch are as different as they like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw, Floats, Integers
from sr_runner.data.degradations.steps import check_range
from sr_runner.errors import RequestError

Method = Literal["area", "bilinear", "bicubic", "matlab"]


@dataclass(frozen=True)
class Resize:
    """Resize by a random factor, with one of `methods`, equally likely.

    `factor` is the range of the factor, or one number; with `probabilities` (up, down, keep) it is drawn from 1 to its
    upper end, from its lower end to 1, or 1, and without uniformly. `relative_to` says what the factor multiplies: the
    `current` size, that of the HR picture (`hr`) or of the LR picture (`lr`; factor=1 gives the LR size exactly).
    `inverse` draws the divisor from the range instead.

    `area`, `bilinear` and `bicubic` (a = -0.75) are torch's `interpolate` without antialiasing; `matlab` is MATLAB's
    bicubic, with antialiasing.
    """

    factor: Sequence[float] | float
    probabilities: Sequence[float] | None = None
    relative_to: Literal["current", "hr", "lr"] = "current"
    methods: Sequence[Method] = ("area", "bilinear", "bicubic")
    inverse: bool = False

    def __post_init__(self) -> None:
        check_range("factor", self._range, at_least=0.01, at_most=64)
        if self.probabilities is not None and (len(self.probabilities) != 3 or min(self.probabilities) < 0):
            raise RequestError(
                f"data.degradation: probabilities={list(self.probabilities)} must be three weights: up, down, keep."
            )
        if self.relative_to not in ("current", "hr", "lr"):
            raise RequestError(f"data.degradation: relative_to={self.relative_to!r} must be current, hr or lr.")
        for method in self.methods:
            if method not in _WEIGHTS:
                raise RequestError(f"data.degradation: methods has {method!r}; there are {', '.join(_WEIGHTS)}.")

    @property
    def _range(self) -> tuple[float, float]:
        if isinstance(self.factor, int | float):
            return self.factor, self.factor
        low, high = self.factor
        return low, high

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        factor = self._draw_factor(draw)
        base = {"hr": canvas.original, "lr": canvas.target}.get(self.relative_to)
        heights, widths = base or (canvas.heights, canvas.widths)
        most = 1 / self._range[0] if self.inverse else self._range[1]
        extent = base or canvas.pixels.shape[2:]
        method = draw.below(2, len(self.methods))
        return resize(
            canvas,
            np.maximum(np.floor(heights * factor + 1e-9).astype(np.int64), 1),
            np.maximum(np.floor(widths * factor + 1e-9).astype(np.int64), 1),
            [self.methods[index] for index in method],
            (max(1, math.floor(extent[0] * most + 1e-9)), max(1, math.floor(extent[1] * most + 1e-9))),
        )

    def _draw_factor(self, draw: Draw) -> Floats:
        low, high = self._range
        if self.probabilities is None:
            factor = draw.uniform(0, low, high)
        else:
            kind = draw.choice(1, np.asarray(self.probabilities, dtype=np.float64))
            position = draw.uniform(0)
            factor = np.select([kind == 0, kind == 1], [1 + position * (max(high, 1) - 1), low + position * (1 - low)], 1.0)
        return 1 / factor if self.inverse else factor


def resize(
    canvas: Canvas, heights: Integers, widths: Integers, methods: Sequence[str], extent: tuple[int, int]
) -> Canvas:
    """Each picture to `heights` x `widths` by its method, on a canvas of `extent`, which must hold them all."""
    rows = _matrices(canvas.heights, heights, methods, canvas.pixels.shape[2], extent[0])
    columns = _matrices(canvas.widths, widths, methods, canvas.pixels.shape[3], extent[1])
    count, channels, height, width = canvas.pixels.shape
    left, right = (matrix.to(canvas.device, canvas.pixels.dtype) for matrix in (rows, columns))
    pixels = canvas.pixels.nan_to_num(0.0) if count == 0 else canvas.pixels
    wide = torch.bmm(pixels.reshape(count, channels * height, width), right.transpose(1, 2))
    tall = torch.matmul(left[:, None], wide.view(count, channels, height, extent[1]))
    return replace(canvas, pixels=tall, heights=heights, widths=widths)


def _matrices(sizes: Integers, sizes_out: Integers, methods: Sequence[str], extent: int, extent_out: int) -> Tensor:
    """N x extent_out x extent: how much each source pixel gives to each output pixel; rows beyond the sizes are 0."""
    matrices = np.zeros((len(sizes), extent_out, extent), np.float32)
    for matrix, size, size_out, method in zip(matrices, sizes.tolist(), sizes_out.tolist(), methods, strict=True):
        matrix[:size_out, :size] = _WEIGHTS[method](size, size_out)
    return torch.from_numpy(matrices)
