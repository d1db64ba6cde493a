"""Noise: Gaussian and Poisson."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw, per_picture
from sr_runner.data.degradations.steps import apply_where, check_probability, check_range

_EXACT_BELOW = 4.0
"""Mean up to which Poisson numbers are drawn by inversion. Above, the distribution function of what the expansion gives
is off by less than 0.003."""

_TERMS = 20
"""Largest number that inversion gives: a larger one comes once in 10^8 draws."""


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
        grey, gaussian = draw.chance(0, self.grey), draw.chance(1, self.gaussian)
        for alike in (True, False):
            add_gaussian = partial(self._add_gaussian, channels=1 if alike else 3)
            add_poisson = partial(self._add_poisson, grey=alike)
            canvas = apply_where(add_gaussian, canvas, draw, gaussian & (grey == alike))
            canvas = apply_where(add_poisson, canvas, draw, ~gaussian & (grey == alike))
        return canvas

    def _add_gaussian(self, canvas: Canvas, draw: Draw, *, channels: int) -> Canvas:
        sigma = per_picture(draw.uniform(2, *self.sigma) / 255, canvas.pixels)
        noise = draw.normal(4, canvas, channels)
        return canvas.with_pixels((canvas.pixels + sigma * noise).clamp_(0, 1))

    def _add_poisson(self, canvas: Canvas, draw: Draw, *, grey: bool) -> Canvas:
        """What Poisson statistics add, given as many photons as there are grey levels, rounded up to a power of 2."""
        strength = per_picture(draw.uniform(3, *self.poisson_scale), canvas.pixels)
        image = canvas.pixels.mul(255).round_().clamp_(0, 255)
        if grey:
            red, green, blue = image.unbind(1)
            image = (0.2989 * red + 0.587 * green + 0.114 * blue).round_()[:, None]
        levels = _levels(image, canvas)
        mean = image.mul_(levels / 255)
        noise = (poisson(mean, *draw.per_pixel(5, canvas, image.shape[1])) - mean) / levels
        return canvas.with_pixels((canvas.pixels + strength * noise).clamp_(0, 1))


def _levels(rounded: Tensor, canvas: Canvas) -> Tensor:
    """The number of grey levels in each picture, rounded up to a power of 2 (N x 1 x 1 x 1)."""
    count, _, height, width = rounded.shape
    heights, widths = per_picture(canvas.heights, rounded), per_picture(canvas.widths, rounded)
    rows, columns = torch.arange(height, device=rounded.device), torch.arange(width, device=rounded.device)
    inside = (rows[:, None] < heights) & (columns < widths)
    level = torch.where(inside, rounded.to(torch.int64), 256).view(count, -1)
    present = torch.zeros(count, 257, device=rounded.device).scatter_(1, level, 1.0)
    return present[:, :256].sum(1).log2().ceil().exp2().view(-1, 1, 1, 1)


def poisson(mean: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Poisson numbers of the given means from two uniform numbers each."""
    small = mean.clamp(max=_EXACT_BELOW)
    term, number = (-small).exp_(), torch.zeros_like(mean)
    cumulative = term.clone()
    for k in range(1, _TERMS):
        number += first > cumulative
        cumulative += term.mul_(small).div_(k)
    z = (first.log() * -2).sqrt_() * (second * (2 * torch.pi)).cos_()
    root = mean.clamp(min=1).sqrt_()
    # Cornish and Fisher's expansion of the quantile, to the third order.
    expansion = mean + root * z + (z * z - 1) / 6 + (z - z**3) / (72 * root)
    return torch.where(mean <= _EXACT_BELOW, number, expansion.round_().clamp_(min=0))
