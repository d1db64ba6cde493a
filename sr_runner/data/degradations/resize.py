"""Resizing with random factors and filters, each picture to a size of its own.

Resampling along an axis is a product with a small matrix; the matrices of a batch are as different as they like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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

    `area`, `bilinear` and `bicubic` (a = -0.75) are torch's `interpolate` without antialiasing; `matlab` is MATLAB's
    bicubic, with antialiasing.
    """

    factor: Sequence[float] | float
    probabilities: Sequence[float] | None = None
    relative_to: Literal["current", "hr", "lr"] = "current"
    methods: Sequence[Method] = ("area", "bilinear", "bicubic")

    def __post_init__(self) -> None:
        check_range("factor", self._range, at_least=0.01, at_most=64)
        if self.probabilities is not None and (len(self.probabilities) != 3 or min(self.probabilities) < 0):
            raise RequestError(
                f"data.degradation: probabilities={list(self.probabilities)}: expected three weights: up, down, keep."
            )
        if self.relative_to not in ("current", "hr", "lr"):
            raise RequestError(f"data.degradation: relative_to={self.relative_to!r}: expected current, hr or lr.")
        for method in self.methods:
            if method not in METHODS:
                raise RequestError(f"data.degradation: methods: {method!r} is not one of {', '.join(METHODS)}.")

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
        extent = base or canvas.pixels.shape[2:]
        method = draw.below(2, len(self.methods))
        return resize(
            canvas,
            np.maximum(np.floor(heights * factor + 1e-9).astype(np.int64), 1),
            np.maximum(np.floor(widths * factor + 1e-9).astype(np.int64), 1),
            [self.methods[index] for index in method],
            (
                max(1, math.floor(extent[0] * self._range[1] + 1e-9)),
                max(1, math.floor(extent[1] * self._range[1] + 1e-9)),
            ),
        )

    def _draw_factor(self, draw: Draw) -> Floats:
        low, high = self._range
        if self.probabilities is None:
            return draw.uniform(0, low, high)
        kind = draw.choice(1, np.asarray(self.probabilities, dtype=np.float64))
        position = draw.uniform(0)
        return np.select([kind == 0, kind == 1], [1 + position * (max(high, 1) - 1), low + position * (1 - low)], 1.0)


def resize(
    canvas: Canvas, heights: Integers, widths: Integers, methods: Sequence[str], extent: tuple[int, int]
) -> Canvas:
    """Each picture to `heights` x `widths` by its method, on a canvas of `extent`, which must hold them all."""
    rows = _matrices(canvas.heights, heights, methods, canvas.pixels.shape[2], extent[0], canvas.pixels)
    columns = _matrices(canvas.widths, widths, methods, canvas.pixels.shape[3], extent[1], canvas.pixels)
    count, channels, height, width = canvas.pixels.shape
    wide = torch.bmm(canvas.pixels.reshape(count, channels * height, width), columns.transpose(1, 2))
    tall = torch.matmul(rows[:, None], wide.view(count, channels, height, extent[1]))
    return replace(canvas, pixels=tall, heights=heights, widths=widths)


def _matrices(
    sizes: Integers, sizes_out: Integers, methods: Sequence[str], extent: int, extent_out: int, like: Tensor
) -> Tensor:
    """N x extent_out x extent: how much each source pixel gives to each output pixel; rows beyond the sizes are 0."""
    matrices = np.zeros((len(sizes), extent_out, extent), np.float32)
    place = np.arange(extent_out)[None]
    for method in dict.fromkeys(methods):
        chosen = np.array([name == method for name in methods])
        size, size_out = sizes[chosen, None], sizes_out[chosen, None]
        picture = np.flatnonzero(chosen)[:, None]
        for index, weight in _TAPS[method](place, size, size_out):
            matrices[picture, place, np.clip(index, 0, size - 1)] += weight * (place < size_out)
    return torch.from_numpy(matrices).to(like.device, like.dtype)


Taps = Iterator[tuple[Integers, Floats]]
"""For each output pixel (N x O) the index of one source pixel and its weight; indices outside mean the edge."""


def _area(place: Integers, size: Integers, size_out: Integers) -> Taps:
    start, end = place * size // size_out, -(-(place + 1) * size // size_out)
    share: Floats = np.reciprocal((end - start).astype(np.float64))
    for tap in range(int((end - start).max(initial=0))):
        yield start + tap, share * (start + tap < end)


def _bilinear(place: Integers, size: Integers, size_out: Integers) -> Taps:
    source: Floats = np.maximum((place + 0.5) * size / size_out - 0.5, 0)
    first = np.floor(source).astype(np.int64)
    yield first, 1 - (source - first)
    yield first + 1, source - first


def _bicubic(place: Integers, size: Integers, size_out: Integers) -> Taps:
    source = (place + 0.5) * size / size_out - 0.5
    first = np.floor(source).astype(np.int64)
    for tap in range(-1, 3):
        yield first + tap, _cubic(source - first - tap, -0.75)


def _matlab(place: Integers, size: Integers, size_out: Integers) -> Taps:
    source, shrink = (place + 0.5) * size / size_out - 0.5, np.minimum(size_out / size, 1)
    taps = math.ceil(4 / shrink.min(initial=1)) + 2
    start = np.floor(source - 2 / shrink).astype(np.int64)
    total = sum(_cubic((source - start - tap) * shrink, -0.5) for tap in range(taps))
    for tap in range(taps):
        mirrored = (start + tap) % (2 * size)
        yield np.minimum(mirrored, 2 * size - 1 - mirrored), _cubic((source - start - tap) * shrink, -0.5) / total


def _cubic(distance: Floats, a: float) -> Floats:
    t = np.abs(distance)
    near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, (((t - 5) * t + 8) * t - 4) * a
    return np.select([t <= 1, t < 2], [near, far], 0.0)


_TAPS: dict[str, Callable[[Integers, Integers, Integers], Taps]] = {
    "area": _area,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "matlab": _matlab,
}

METHODS = tuple(_TAPS)
