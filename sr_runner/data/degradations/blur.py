"""Blur: Gaussian kernels and their generalisations, and the ringing of an ideal low-pass filter.

The kernels are those of Real-ESRGAN (Wang et al. 2021, section 3.1) and BSRGAN (Zhang et al. 2021, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw, Floats, Integers
from sr_runner.data.degradations.steps import check_probability, check_range
from sr_runner.errors import RequestError

_GAUSSIAN, _GENERALISED, _PLATEAU = range(3)


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
        _check_sizes(self.sizes)
        if len(self.kinds) != 6 or min(self.kinds) < 0 or sum(self.kinds) <= 0:
            raise RequestError(f"data.degradation: kinds={list(self.kinds)} must be six weights of 0 or more.")

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        reach = _draw_reach(self.sizes, draw, 0)
        gaussian = self._gaussian_like(draw, reach, max(self.sizes) // 2)
        cutoff = draw.uniform(7, np.where(reach < 6, math.pi / 3, math.pi / 5), math.pi)
        chosen = torch.from_numpy(draw.chance(8, self.sinc)).view(-1, 1, 1)
        return convolve(canvas, torch.where(chosen, sinc_kernel(cutoff, reach, max(self.sizes) // 2), gaussian))

    def _gaussian_like(self, draw: Draw, reach: Integers, radius: int) -> Tensor:
        kind = draw.choice(1, np.asarray(self.kinds, dtype=np.float64))
        shape = np.select([kind // 2 == _GENERALISED, kind // 2 == _PLATEAU], [self._beta(draw, 5), self._beta(draw, 6)], 1)
        first, second = draw.uniform(2, *self.sigma), draw.uniform(3, *self.sigma)
        angle = draw.uniform(4, -math.pi, math.pi)
        kernel = gaussian_kernel(first, np.where(kind % 2 == 0, first, second), angle, shape, kind // 2 == _PLATEAU, radius)
        return _cut(kernel, reach)

    def _beta(self, draw: Draw, name: int) -> Floats:
        low, high = self.generalised_shape if name == 5 else self.plateau_shape
        position = draw.uniform(name)  # below a half: between low and 1; else between 1 and high
        below, above = min(max(low, 1e-3), 1), max(high, 1)
        return np.where(position < 0.5, below + 2 * position * (1 - below), 1 + (2 * position - 1) * (above - 1))


@dataclass(frozen=True)
class BsrganBlur:
    """BSRGAN's blur, whose strength grows with the scale between the HR and the LR pictures.

    Half the kernels are isotropic Gaussians with a standard deviation up to 2 + 0.2 x scale, half are anisotropic ones
    with variances up to 4 + scale along their axes.
    """

    sizes: Sequence[int] = (7, 25)

    def __post_init__(self) -> None:
        _check_sizes(self.sizes)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        scale = canvas.original[0] / canvas.target[0]
        isotropic = draw.chance(0, 0.5)
        sigma = draw.uniform(1, 0, 2 + 0.2 * scale)
        first = np.where(isotropic, sigma, np.sqrt(draw.uniform(2, 0, 4 + scale)))
        second = np.where(isotropic, sigma, np.sqrt(draw.uniform(3, 0, 4 + scale)))
        angle, plain = draw.uniform(4, 0, math.pi), np.ones(len(draw))
        kernel = gaussian_kernel(first, second, angle, plain, plain < 0, max(self.sizes) // 2)
        return convolve(canvas, _cut(kernel, _draw_reach(self.sizes, draw, 5)))


@dataclass(frozen=True)
class Sinc:
    """An ideal low-pass filter cut off to a random odd size: ringing and overshoot, as sharpening leaves them.

    `cutoff` is the range of the cut-off frequency in radians a pixel.
    """

    cutoff: Sequence[float] = (math.pi / 3, math.pi)
    sizes: Sequence[int] = (7, 21)

    def __post_init__(self) -> None:
        check_range("cutoff", self.cutoff, at_least=1e-3, at_most=math.pi)
        _check_sizes(self.sizes)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        reach = _draw_reach(self.sizes, draw, 0)
        return convolve(canvas, sinc_kernel(draw.uniform(1, *self.cutoff), reach, max(self.sizes) // 2))


def gaussian_kernel(
    first: Floats, second: Floats, angle: Floats, shape: Floats, plateau: Floats | np.ndarray, radius: int
) -> Tensor:
    """N kernels of (2 x radius + 1)^2, not normalised; standard deviations `first` and `second` along axes turned by
    `angle`; exp(-q^shape / 2), or 1 / (1 + q^shape) where `plateau`."""
    x, y = _grid(radius)
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    widths = [np.maximum(sigma, 1e-3)[:, None, None] for sigma in (first, second)]  # 0 would divide by nothing
    q = ((cos * x + sin * y) / widths[0]) ** 2 + ((cos * y - sin * x) / widths[1]) ** 2
    power = q ** shape[:, None, None]
    return torch.from_numpy(np.where(plateau[:, None, None], 1 / (1 + power), np.exp(-power / 2)))


def sinc_kernel(cutoff: Floats, reach: Integers, radius: int) -> Tensor:
    """N kernels of (2 x radius + 1)^2, zero beyond `reach` pixels from the centre and of sum 1: the impulse response of
    a circular low-pass filter, w J1(w r) / (2 pi r)."""
    x, y = _grid(radius)
    distance = torch.from_numpy(np.hypot(x, y))
    w = torch.from_numpy(cutoff)[:, None, None]
    ring = w * torch.special.bessel_j1(w * distance) / (2 * math.pi * distance.clamp(min=1))
    return _cut(torch.where(distance == 0, w**2 / (4 * math.pi), ring), reach)


def convolve(canvas: Canvas, kernels: Tensor) -> Canvas:
    """Each picture with its kernel (N x K x K), mirrored at its edges. Kernels are symmetric about their centre."""
    radius = kernels.shape[1] // 2
    height, width = canvas.pixels.shape[2:]
    padded = canvas.gather(_mirrored(canvas.heights, height, radius), _mirrored(canvas.widths, width, radius))
    size = padded.shape[2], padded.shape[3]
    # In the frequency domain a kernel of 21 x 21 costs no more than one of 3 x 3. What wraps around is cropped off.
    spectrum = torch.fft.rfft2(kernels.to(canvas.device, torch.float32), s=size)[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * spectrum, s=size)
    return canvas.with_pixels(blurred[:, :, 2 * radius :, 2 * radius :].contiguous())


def _mirrored(sizes: Integers, extent: int, radius: int) -> Integers:
    """Source index of each place from -radius to extent + radius - 1, mirrored about the first and last pixel."""
    period = np.maximum(2 * (sizes - 1), 1)[:, None]
    place = np.abs(np.arange(-radius, extent + radius)[None]) % period
    return np.minimum(place, period - place) * (sizes[:, None] > 1)


def _cut(kernels: Tensor, reach: Integers) -> Tensor:
    """Zero beyond `reach` (N) pixels from the centre along either axis, and of sum 1."""
    x, y = _grid(kernels.shape[1] // 2)
    inside = torch.from_numpy(np.maximum(np.abs(x), np.abs(y))[None] <= reach[:, None, None])
    cut = kernels * inside
    return cut / cut.sum(dim=(1, 2), keepdim=True)


def _grid(radius: int) -> tuple[Floats, Floats]:
    side = np.arange(-radius, radius + 1, dtype=np.float64)
    return side[None, :], side[:, None]


def _draw_reach(sizes: Sequence[int], draw: Draw, name: int) -> Integers:
    """Half a random odd size, rounded down."""
    low, high = (size // 2 for size in sizes)
    return low + draw.below(name, high - low + 1)


def _check_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) != 2 or not 1 <= sizes[0] <= sizes[1] or any(size % 2 == 0 for size in sizes):
        raise RequestError(f"data.degradation: sizes={list(sizes)} must be [smallest, largest], odd numbers.")
