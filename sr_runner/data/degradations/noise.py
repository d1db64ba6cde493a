"""Noise: Gaussian and Poisson."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw, per_picture
from sr_runner.data.degradations.steps import check_probability, check_range

_EXACT_BELOW = 12.0
"""Mean up to which Poisson numbers are drawn by inversion; above, a third-order expansion is right to the integer."""

_TERMS = 48
"""Largest number that inversion gives; for a mean of 12 there is no larger one in 10^12 draws."""


@dataclass(frozen=True)
class Noise:
    """Real-ESRGAN's noise: Gaussian with probability `gaussian`, else Poisson; then clipped to [0, 1].

    `sigma` is the range of the standard deviation on the scale of 0..255, `poisson_scale` that of the strength of
    Poisson noise, 1 being that of as many photons as the picture has grey levels. With probability `grey` the noise is
    the same in all channels.
    """

    sigma: Sequence[float] = (1.0, 30.0)
    poisson_scale: Sequence[float] = (0.05, 3.0)
    gaussian: float = 0.5
    grey: float = 0.4

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, at_least=0)
        check_range("poisson_scale", self.poisson_scale, at_least=0)
        check_probability("gaussian", self.gaussian)
        check_probability("grey", self.grey)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        grey = per_picture(draw.chance(0, self.grey).astype(np.float64), canvas.pixels)
        gaussian = draw.chance(1, self.gaussian)
        pixels = canvas.pixels
        if gaussian.any():
            chosen, sigma = per_picture(gaussian.astype(np.float64), pixels), draw.uniform(2, *self.sigma) / 255
            pixels = pixels + chosen * per_picture(sigma, pixels) * self._normal(canvas, draw, grey)
        if not gaussian.all():
            chosen, strength = per_picture(1.0 - gaussian, pixels), draw.uniform(3, *self.poisson_scale)
            pixels = pixels + chosen * per_picture(strength, pixels) * _poisson_noise(canvas, draw, grey)
        return canvas.with_pixels(pixels.clamp(0, 1))

    @staticmethod
    def _normal(canvas: Canvas, draw: Draw, grey: Tensor) -> Tensor:
        noise = draw.normal(4, canvas)
        return torch.where(grey > 0, noise[:, :1], noise)


def _poisson_noise(canvas: Canvas, draw: Draw, grey: Tensor) -> Tensor:
    """What Poisson statistics add to each pixel, in [0, 1], as many photons as there are grey levels (a power of 2)."""
    rounded = canvas.pixels.mul(255).round().clamp(0, 255)
    luminance = rounded.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1).mul(rounded).sum(1, keepdim=True).round()
    colour = _poisson(rounded / 255, _levels(rounded, canvas), draw, canvas, 5)
    plain = _poisson(luminance / 255, _levels(luminance, canvas), draw, canvas, 6)
    return torch.where(grey > 0, plain, colour)


def _levels(rounded: Tensor, canvas: Canvas) -> Tensor:
    """The number of grey levels in each picture, rounded up to a power of 2 (N x 1 x 1 x 1)."""
    count, _, height, width = rounded.shape
    heights, widths = (
        torch.from_numpy(sizes).to(rounded.device).view(-1, 1, 1, 1) for sizes in (canvas.heights, canvas.widths)
    )
    rows, columns = torch.arange(height, device=rounded.device), torch.arange(width, device=rounded.device)
    inside = (rows[:, None] < heights) & (columns < widths)
    level = torch.where(inside, rounded.to(torch.int64), 256).view(count, -1)
    present = torch.zeros(count, 257, device=rounded.device).scatter_(1, level, 1.0)
    return present[:, :256].sum(1).log2().ceil().exp2().view(-1, 1, 1, 1)


def _poisson(image: Tensor, levels: Tensor, draw: Draw, canvas: Canvas, name: int) -> Tensor:
    mean = image * levels
    radius, angle = draw.per_pixel(name, canvas, image.shape[1])
    return (poisson(mean, radius, angle) - mean) / levels


def poisson(mean: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Poisson numbers of the given means from two uniform numbers each."""
    small = mean.clamp(max=_EXACT_BELOW)
    term, number = (-small).exp(), torch.zeros_like(mean)
    cumulative = term.clone()
    for k in range(1, _TERMS):
        number += first > cumulative
        term = term * small / k
        cumulative = cumulative + term
    z = (first.log() * -2).sqrt() * (second * (2 * torch.pi)).cos()
    root = mean.clamp(min=1).sqrt()
    expansion = mean + root * z + (z * z - 1) / 6 + (z - z**3) / (72 * root)
    return torch.where(mean <= _EXACT_BELOW, number, expansion.round().clamp(min=0))
