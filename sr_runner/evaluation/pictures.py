"""Where a network does best and worst: sheets of both images with maps of their errors."""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sr_runner.evaluation.metrics import Score, UInt8Image, bands, luma
from sr_runner.evaluation.protocol import Pair
from sr_runner.evaluation.strip import Crop, decibels, detailed_crop, picture_strip, shown_size, side_by_side
from sr_runner.imresize import imresize_uint8

FULL_ERROR = 32
"""Levels of Y (of 255) that the brightest colour of an error map stands for; larger errors look the same."""


@dataclass
class Extremes:
    """Keeps the SR images of the highest and of the lowest PSNR (RGB) seen so far, and no others."""

    best: tuple[Pair, UInt8Image, Score] | None = None
    worst: tuple[Pair, UInt8Image, Score] | None = None

    def see(self, pair: Pair, sr: UInt8Image, score: Score) -> None:
        """To be called with each image."""
        if self.best is None or score.psnr > self.best[2].psnr:
            self.best = (pair, sr, score)
        if self.worst is None or score.psnr < self.worst[2].psnr:
            self.worst = (pair, sr, score)


def error_sheet(pair: Pair, sr: UInt8Image, *, scale: int) -> Image.Image:
    """The strip bicubic | SR | HR of the most detailed crop, and below it maps of the error in Y.

    The maps show the crop for bicubic and for SR, and the whole image for SR, the crop marked.
    """
    crop = detailed_crop(pair.hr, scale=scale, size=96)
    bicubic_error = _error(imresize_uint8(pair.lr, scale), pair.hr)
    sr_error = _error(sr, pair.hr)
    strip = picture_strip(pair.lr, sr, pair.hr, scale=scale, size=96)
    maps = side_by_side(
        [_heat(crop.of(bicubic_error)), _heat(crop.of(sr_error)), _overview(sr_error, crop)],
        [
            ("error of bicubic", f"mean {_mean(crop.of(bicubic_error))} here, {_mean(bicubic_error)} whole image"),
            ("error of SR", f"mean {_mean(crop.of(sr_error))} here, {_mean(sr_error)} whole image"),
            ("error of SR, whole image", f"levels of Y, black 0 to yellow {FULL_ERROR}"),
        ],
    )
    sheet = Image.new("RGB", (max(strip.width, maps.width), strip.height + maps.height), (255, 255, 255))
    sheet.paste(strip, (0, 0))
    sheet.paste(maps, (0, strip.height))
    return sheet


def sheets(extremes: Extremes, *, scale: int) -> dict[str, Image.Image]:
    """Title to sheet, for the best and for the worst image."""
    found = {}
    for kind, seen in (("best", extremes.best), ("worst", extremes.worst)):
        if seen is not None:
            pair, sr, score = seen
            found[f"{kind} {pair.name} {decibels(score.psnr)}"] = error_sheet(pair, sr, scale=scale)
    return found


def file_name(*parts: str) -> str:
    """A file name made of `parts`, with nothing in it that a shell or a file system minds."""
    return "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts) + ".png"


def _error(image: UInt8Image, hr: UInt8Image) -> npt.NDArray[np.float32]:
    """|difference| in Y, H x W x 1."""
    error = np.empty((*hr.shape[:2], 1), np.float32)
    for rows in bands(hr):
        error[rows, :, 0] = np.abs(luma(image[rows]) - luma(hr[rows]))
    return error


def _heat(error: npt.NDArray[np.float32]) -> UInt8Image:
    levels = (np.clip(error[..., 0] / FULL_ERROR, 0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def _overview(error: npt.NDArray[np.float32], crop: Crop) -> UInt8Image:
    """The whole map shrunk into a square as large as the crop is shown, the crop outlined."""
    side = shown_size(crop.size)
    height, width = error.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # The largest error under each pixel would exaggerate, nearest would lose: the mean of the area is honest.
    shrunk = np.asarray(Image.fromarray(error[..., 0]).resize(size, Image.Resampling.BOX))
    sheet = Image.new("RGB", (side, side), (255, 255, 255))
    corner = ((side - size[0]) // 2, 0)
    sheet.paste(Image.fromarray(_heat(shrunk[..., None])), corner)
    left, top, length = corner[0] + crop.left * factor, crop.top * factor, crop.size * factor
    ImageDraw.Draw(sheet).rectangle([left, top, left + length, top + length], outline=(0, 220, 255))
    return np.asarray(sheet)


def _mean(error: npt.NDArray[np.float32]) -> str:
    return f"{float(error.mean()):.2f}"
