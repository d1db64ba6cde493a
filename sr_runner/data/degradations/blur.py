"""Blur: Gaussian kernels and their generalisations, and the ringing of an ideal low-pass filter.

The kernels are those of Real-ESRGAN (Wang et al. 2021, sections 3.2 and 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw, Floats, Integers
from sr_runner.data.degradations.steps import check_probability, check_range
from sr_runner.errors import RequestError


@dataclass(frozen=True)
class Blur:
    """Convolution with a random kernel of a random odd size, mirrored at the edges.

    `kinds` weighs the kernels: isotropic and anisotropic Gaussian, isotropic and anisotropic generalised Gaussian
    exp(-q^b / 2), isotropic and anisotropic plateau 1 / (1 + q^b). `sigma` is the range of the standard deviation along
    each axis of the kernel, in pixels; `generalised_shape` and `plateau_shape` are the ranges of b, below and above 1
    with equal probability. With probability `sinc` the kernel is an ideal low-pass filter instead (see `Sinc`).
    """

    sigma: Sequence[float] = (0.2, 3.0)
    kinds: Sequence[float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    generalised_shape: Sequence[float] = (0.5, 4.0)
    plateau_shape: Sequence[float] = (1.0, 2.0)
    sizes: Sequence[int] = (7, 21)
    sinc: float = 0.1

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, at_least=1e-3)
        check_range("generalised_shape", self.generalised_shape, at_least=1e-3)
        check_range("plateau_shape", self.plateau_shape, at_least=1e-3)
        check_probability("sinc", self.sinc)
        check_sizes(self.sizes)
        if len(self.kinds) != 6 or min(self.kinds) < 0 or sum(self.kinds) <= 0:
            raise RequestError(f"data.degradation: kinds={list(self.kinds)}: expected six weights of 0 or more.")

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        reach = draw_reach(self.sizes, draw, 0)
        gaussian = self._gaussian_like(draw, reach, max(self.sizes) // 2)
        cutoff = draw.uniform(7, np.where(reach < 6, math.pi / 3, math.pi / 5), math.pi)
        chosen = torch.from_numpy(draw.chance(8, self.sinc)).view(-1, 1, 1)
        return convolve(canvas, torch.where(chosen, sinc_kernel(cutoff, reach, max(self.sizes) // 2), gaussian))

    def _gaussian_like(self, draw: Draw, reach: Integers, radius: int) -> Tensor:
        kind = draw.choice(1, np.asarray(self.kinds, dtype=np.float64))
        generalised, plateau = kind // 2 == 1, kind // 2 == 2
        shapes = _shape(draw.uniform(5), *self.generalised_shape), _shape(draw.uniform(6), *self.plateau_shape)
        shape = np.select([generalised, plateau], shapes, 1)
        first, second = draw.uniform(2, *self.sigma), draw.uniform(3, *self.sigma)
        angle = draw.uniform(4, -math.pi, math.pi)
        second = np.where(kind % 2 == 0, first, second)
        return cut(gaussian_kernel(first, second, radius=radius, angle=angle, shape=shape, plateau=plateau), reach)


@dataclass(frozen=True)
class Sinc:
    """An ideal low-pass filter cut off to a random odd size: ringing and overshoot, as sharpening leaves them.

    `cutoff` is the range of the cut-off frequency in radians a pixel.
    """

    cutoff: Sequence[float] = (math.pi / 3, math.pi)
    sizes: Sequence[int] = (7, 21)

    def __post_init__(self) -> None:
        check_range("cutoff", self.cutoff, at_least=1e-3, at_most=math.pi)
        check_sizes(self.sizes)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        reach = draw_reach(self.sizes, draw, 0)
        return convolve(canvas, sinc_kernel(draw.uniform(1, *self.cutoff), reach, max(self.sizes) // 2))


def _shape(position: Floats, low: float, high: float) -> Floats:
    """From low to 1 for positions below a half, from 1 to high for the others."""
    below, above = min(low, 1), max(high, 1)
    return np.where(position < 0.5, below + 2 * position * (1 - below), 1 + (2 * position - 1) * (above - 1))


def gaussian_kernel(
    first: Floats,
    second: Floats,
    *,
    radius: int,
    angle: Floats | None = None,
    shape: Floats | None = None,
    plateau: npt.NDArray[np.bool_] | None = None,
    centre: Floats | None = None,
) -> Tensor:
    """N kernels of (2 x radius + 1)^2, not normalised: exp(-q^shape / 2), or 1 / (1 + q^shape) where `plateau`.

    The standard deviations along axes turned by `angle` are `first` and `second`. `centre` moves what the kernel
    gathers to the right and down, by that number of pixels.
    """
    nothing = np.zeros_like(first)
    angle, offset = (nothing if given is None else given for given in (angle, centre))
    x, y = (side + offset[:, None, None] for side in _grid(radius))
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, across = (np.maximum(sigma, 1e-3)[:, None, None] for sigma in (first, second))  # 0 would divide by nothing
    q = ((cos * x + sin * y) / along) ** 2 + ((cos * y - sin * x) / across) ** 2
    power = q if shape is None else q ** shape[:, None, None]
    gaussian = np.exp(-power / 2)
    return torch.from_numpy(
        gaussian if plateau is None else np.where(plateau[:, None, None], 1 / (1 + power), gaussian)
    )


def sinc_kernel(cutoff: Floats, reach: Integers, radius: int) -> Tensor:
    """N kernels of (2 x radius + 1)^2, zero beyond `reach` pixels from the centre and of sum 1: the impulse response of
    a circular low-pass filter, w J1(w r) / (2 pi r)."""
    x, y = _grid(radius)
    distance = torch.from_numpy(np.hypot(x, y))
    w = torch.from_numpy(cutoff)[:, None, None]
    ring = w * torch.special.bessel_j1(w * distance) / (2 * math.pi * distance.clamp(min=1))
    return cut(torch.where(distance == 0, w**2 / (4 * math.pi), ring), reach)


def convolve(canvas: Canvas, kernels: Tensor) -> Canvas:
    """Each picture, mirrored at its edges, convolved with its kernel (N x K x K)."""
    radius = kernels.shape[1] // 2
    height, width = canvas.pixels.shape[2:]
    padded = canvas.gather(_mirrored(canvas.heights, height, radius), _mirrored(canvas.widths, width, radius))
    size = padded.shape[2], padded.shape[3]
    # In the frequency domain a kernel of 21 x 21 costs no more than one of 3 x 3. What wraps around is cropped off.
    spectrum = torch.fft.rfft2(kernels.to(canvas.pixels.device, torch.float32), s=size)[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * spectrum, s=size)
    return canvas.with_pixels(blurred[:, :, 2 * radius :, 2 * radius :].contiguous())


def _mirrored(sizes: Integers, extent: int, radius: int) -> Integers:
    """Source index of each place from -radius to extent + radius - 1, mirrored about the first and last pixel."""
    period = np.maximum(2 * (sizes - 1), 1)[:, None]
    place: Integers = np.abs(np.arange(-radius, extent + radius, dtype=np.int64)[None]) % period
    return np.minimum(np.minimum(place, period - place), sizes[:, None] - 1)


def cut(kernels: Tensor, reach: Integers | None = None) -> Tensor:
    """Kernels of sum 1, zero beyond `reach` (N) pixels from the centre along either axis."""
    if reach is not None:
        x, y = _grid(kernels.shape[1] // 2)
        kernels = kernels * torch.from_numpy(np.maximum(np.abs(x), np.abs(y))[None] <= reach[:, None, None])
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def _grid(radius: int) -> tuple[Floats, Floats]:
    side = np.arange(-radius, radius + 1, dtype=np.float64)
    return side[None, :], side[:, None]


def draw_reach(sizes: Sequence[int], draw: Draw, name: int) -> Integers:
    """Half a random odd size, rounded down."""
    low, high = (size // 2 for size in sizes)
    return low + draw.below(name, high - low + 1)


def check_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) != 2 or not 1 <= sizes[0] <= sizes[1] or any(size % 2 == 0 for size in sizes):
        raise RequestError(f"data.degradation: sizes={list(sizes)}: expected [smallest, largest], odd numbers.")
