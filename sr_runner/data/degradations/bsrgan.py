"""Steps that only BSRGAN has (Zhang et al. 2021, "Designing a practical degradation model", sections 3.1 to 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.degradations.blur import check_sizes, convolve, cut, draw_reach, gaussian_kernel
from sr_runner.data.degradations.canvas import Canvas, Draw, Floats, per_picture
from sr_runner.data.degradations.resize import METHODS, resize
from sr_runner.data.degradations.steps import apply_where, check_probability, check_range


@dataclass(frozen=True)
class BsrganBlur:
    """BSRGAN's blur, whose strength grows with the scale between the HR and the LR pictures.

    Half the kernels are isotropic Gaussians with a standard deviation up to 2 + 0.2 x scale, half are anisotropic ones
    with variances up to 4 + scale along their axes.
    """

    sizes: Sequence[int] = (7, 25)

    def __post_init__(self) -> None:
        check_sizes(self.sizes)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        isotropic = draw.chance(0, 0.5)
        sigma = draw.uniform(1, 0, 2 + 0.2 * canvas.scale)
        first = np.where(isotropic, sigma, np.sqrt(draw.uniform(2, 0, 4 + canvas.scale)))
        second = np.where(isotropic, sigma, np.sqrt(draw.uniform(3, 0, 4 + canvas.scale)))
        kernel = gaussian_kernel(first, second, radius=max(self.sizes) // 2, angle=draw.uniform(4, 0, math.pi))
        return convolve(canvas, cut(kernel, draw_reach(self.sizes, draw, 5)))


@dataclass(frozen=True)
class BsrganShrink:
    """BSRGAN's first downsampling: by a random factor, or by the factor that is left to the LR size without a filter.

    With `probability` the factor is 1 to twice what is left, and the method random. Else the picture is blurred by an
    isotropic Gaussian and every k-th pixel of it taken, from the middle of the k x k pixels that it stands for.
    """

    probability: float = 0.75

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        by_any_factor = draw.chance(0, self.probability)
        shrunk = apply_where(_shrink_by_any_factor, canvas, draw, by_any_factor)
        return apply_where(_take_every_kth, shrunk, draw, ~by_any_factor)


def _shrink_by_any_factor(canvas: Canvas, draw: Draw) -> Canvas:
    factor = draw.uniform(1, 1, 2 * canvas.heights / canvas.target[0])
    methods = [METHODS[index] for index in draw.below(2, 3)]
    heights, widths = (np.maximum((sizes / factor).astype(np.int64), 1) for sizes in (canvas.heights, canvas.widths))
    height, width = canvas.pixels.shape[2:]
    return resize(canvas, heights, widths, methods, (height, width))


def _take_every_kth(canvas: Canvas, draw: Draw) -> Canvas:
    step = np.maximum(canvas.heights // canvas.target[0], 1)
    sigma = draw.uniform(3, 0.1, 0.6 * canvas.heights / canvas.target[0])
    blurred = convolve(canvas, cut(gaussian_kernel(sigma, sigma, radius=12, centre=(step - 1) / 2)))
    heights, widths = (-(-sizes // step) for sizes in (canvas.heights, canvas.widths))
    rows, columns = (np.arange(extent)[None] * step[:, None] for extent in canvas.pixels.shape[2:])
    pixels = blurred.gather(
        np.minimum(rows, canvas.heights[:, None] - 1), np.minimum(columns, canvas.widths[:, None] - 1)
    )
    return replace(canvas, pixels=pixels, heights=heights, widths=widths)


@dataclass(frozen=True)
class BsrganNoise:
    """BSRGAN's Gaussian noise, `sigma` being the range of its integer level on the scale of 0..255; clipped to [0, 1].

    With probability 0.4 each it is independent in the channels or the same in them, else correlated between them.
    """

    sigma: Sequence[int] = (2, 25)

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, at_least=0)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        low, high = self.sigma
        level = (low + draw.below(0, high - low + 1)) / 255
        kind = draw.uniform(1)
        noise = draw.normal(2, canvas)
        correlated = torch.einsum("nij,njhw->nihw", _mixing(draw).to(canvas.pixels.device, noise.dtype), noise)
        kinds = per_picture(kind, noise)
        mixed = torch.where(kinds > 0.6, noise, torch.where(kinds < 0.4, noise[:, :1], correlated))
        # BSRGAN ties the correlated kind to the upper end of the range, not to the level.
        strength: Floats = np.where((kind >= 0.4) & (kind <= 0.6), high / 255, level)
        return canvas.with_pixels((canvas.pixels + per_picture(strength, noise) * mixed).clamp(0, 1))


def _mixing(draw: Draw) -> Tensor:
    """N x 3 x 3 square roots of random covariances: uniform variances along random axes."""
    variances = np.stack([draw.uniform(name) for name in (3, 4, 5)], axis=1)
    matrices = np.stack([draw.uniform(name) for name in range(6, 15)], axis=1).reshape(-1, 3, 3)
    axes, _ = np.linalg.qr(matrices)
    return torch.from_numpy(axes.transpose(0, 2, 1) * np.sqrt(variances)[:, None, :])
