"""HR patches as Real-ESRGAN (Wang et al., ICCVW 2021) wants them: sharpened, since its LR images are hardly sharp."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 25
"""Pixels on each side that a pixel is compared with."""
_SIGMA, _AMOUNT, _THRESHOLD = 8.0, 0.5, 10 / 255


def sharpened(images: Tensor) -> Tensor:
    """Unsharp masking of N x C x H x W images in [0, 1], as in BasicSR's `USMSharp`: where an image differs from its
    blur by more than a threshold, half of the difference is added. 51 x 51 Gaussian, sigma 8 (OpenCV's for that size),
    the border mirrored.

    Raises `ValueError` for images of 25 pixels and less.
    """
    if min(images.shape[-2:]) <= RADIUS:
        size = " x ".join(map(str, images.shape[-2:]))
        raise ValueError(f"sharpen: patches of {size} pixels, expected more than {RADIUS}")
    detail = images - _blurred(images)
    mask = _blurred((detail.abs() > _THRESHOLD).to(images.dtype))
    sharp = (images + _AMOUNT * detail).clamp(0, 1)
    return mask * sharp + (1 - mask) * images


def _blurred(images: Tensor) -> Tensor:
    channels, kernel = images.shape[1], _gaussian().to(images)
    padded = F.pad(images, (RADIUS, RADIUS, RADIUS, RADIUS), mode="reflect")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


@functools.cache
def _gaussian() -> Tensor:
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return weights / weights.sum()
