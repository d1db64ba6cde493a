"""PSNR and SSIM by the field's protocol, on RGB and on the Y of YCbCr.

Images are uint8 HWC RGB. A border is cropped from each side, Y is the BT.601 studio transform and is not rounded, and
SSIM is that of Wang et al. 2004: an 11x11 Gaussian window of sigma 1.5 that stays inside the image ("valid"), K1 0.01,
K2 0.03, data range 255. SSIM on RGB is the mean over the three channels. `skimage.metrics.structural_similarity` with
`gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255` gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sr_runner.errors import RequestError

UInt8Image = npt.NDArray[np.uint8]
"""H x W x 3, RGB."""
Planes = npt.NDArray[np.float64]
"""H x W x 4: R, G, B and Y, all in 0..255."""

METRICS = ("psnr", "ssim", "psnr_y", "ssim_y")
"""What `score` computes."""

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_OFFSETS = np.arange(WINDOW) - WINDOW // 2
_GAUSSIAN = np.exp(-0.5 * (_OFFSETS / _SIGMA) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()

_Y_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255.0
_Y_OFFSET = 16.0

# Large enough to spread the cost of the rows that two bands share, small enough to keep the float64 planes in cache.
_BAND_PIXELS = 1 << 17


@dataclass(frozen=True)
class Score:
    """How close one SR image is to its HR image. PSNR in dB (`inf` where they are identical), SSIM at most 1."""

    image: str
    psnr: float
    ssim: float
    psnr_y: float
    ssim_y: float
    others: Mapping[str, float] = field(default_factory=dict)
    """Further metrics by name, see `named`."""

    @property
    def values(self) -> dict[str, float]:
        """All metrics by name."""
        return {name: getattr(self, name) for name in METRICS} | dict(self.others)


def title(name: str) -> str:
    """What the metric `name` is called in tables: PSNR-Y, LPIPS."""
    return name.upper().replace("_", "-") if name in METRICS else name.rpartition(".")[2].upper()


def digits(name: str) -> int:
    """How many digits of the metric `name` after the point are worth reading."""
    return 3 if name.startswith("psnr") else 4


def score(name: str, sr: UInt8Image, hr: UInt8Image, *, crop: int) -> Score:
    """PSNR and SSIM of `sr` against `hr`, both uint8 H x W x 3, with `crop` pixels left out on each side.

    Memory stays at a few tens of MB whatever the size of the images.

    Raises `RequestError` where the images differ in size or are too small for the SSIM window.
    """
    sr, hr = cropped(name, sr, hr, crop)
    squared_error = np.zeros(4)
    ssim_sum = np.zeros(4)
    height, width = hr.shape[:2]
    for rows in bands(hr):
        with_window = slice(rows.start, rows.stop + WINDOW - 1)  # also the rows below that SSIM windows reach into
        sr_band, hr_band = _planes(sr[with_window]), _planes(hr[with_window])
        difference = (sr_band - hr_band)[: rows.stop - rows.start]
        squared_error += np.einsum("hwc,hwc->c", difference, difference)
        if len(sr_band) >= WINDOW:
            ssim_sum += _ssim_map(sr_band, hr_band).sum(axis=(0, 1))
    mse = squared_error / (height * width)
    ssim = ssim_sum / ((height - WINDOW + 1) * (width - WINDOW + 1))
    return Score(
        image=name,
        psnr=_decibels(float(mse[:3].mean())),
        ssim=float(ssim[:3].mean()),
        psnr_y=_decibels(float(mse[3])),
        ssim_y=float(ssim[3]),
    )


def rgb_psnr(sr: UInt8Image, hr: UInt8Image) -> float:
    """PSNR in dB over all pixels and channels of two uint8 images of one size, no border cropped."""
    return _decibels(cv2.norm(sr, hr, cv2.NORM_L2SQR) / hr.size)


def luma(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Y of YCbCr, BT.601 studio range (16..235), not rounded, of an H x W x 3 RGB image in 0..255."""
    return np.asarray(rgb.astype(np.float64) @ _Y_WEIGHTS + _Y_OFFSET)


def bands(image: npt.NDArray[Any], multiple: int = 1) -> Iterator[slice]:
    """The rows of `image` (H x W ...) in bands of some hundred thousand pixels, each a multiple of `multiple` rows."""
    height, width = image.shape[:2]
    step = max(1, _BAND_PIXELS // (multiple * max(width, 1))) * multiple
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def cropped(name: str, sr: UInt8Image, hr: UInt8Image, crop: int) -> tuple[UInt8Image, UInt8Image]:
    """Both images without `crop` pixels on each side; refuses those that no score can be given for."""
    if sr.shape != hr.shape:
        raise RequestError(f"image '{name}': SR is {_size(sr)} and HR is {_size(hr)}; expected the same size.")
    height, width = hr.shape[0] - 2 * crop, hr.shape[1] - 2 * crop
    if min(height, width) < WINDOW:
        least = WINDOW + 2 * crop
        raise RequestError(
            f"image '{name}' is {_size(hr)}: expected at least {least}x{least} for SSIM with {crop} pixels cropped."
        )
    rows, columns = slice(crop, crop + height), slice(crop, crop + width)
    return sr[rows, columns], hr[rows, columns]


def _planes(rgb: UInt8Image) -> Planes:
    planes = np.empty((*rgb.shape[:2], 4))
    planes[..., :3] = rgb
    planes[..., 3] = luma(rgb)
    return planes


def _ssim_map(x: Planes, y: Planes) -> Planes:
    """SSIM of each channel at each place where the window lies inside the image."""
    mean_x, mean_y = _blur(x), _blur(y)
    mean_product = mean_x * mean_y
    mean_squares = mean_x * mean_x + mean_y * mean_y
    covariance = _blur(x * y) - mean_product
    variances = _blur(x * x + y * y) - mean_squares  # their sum is all that the formula needs
    numerator = (2 * mean_product + _C1) * (2 * covariance + _C2)
    return np.asarray(numerator / ((mean_squares + _C1) * (variances + _C2)))


def _blur(planes: Planes) -> Planes:
    edge = WINDOW // 2
    return np.asarray(cv2.sepFilter2D(planes, cv2.CV_64F, _GAUSSIAN, _GAUSSIAN)[edge:-edge, edge:-edge])


def _decibels(mse: float) -> float:
    return math.inf if mse == 0 else 10 * math.log10(255.0**2 / mse)


def _size(image: npt.NDArray[Any]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
