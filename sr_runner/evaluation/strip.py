"""The picture that shows what a PSNR means: one crop, enlarged, as bicubic, SR and HR side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sr_runner.evaluation.metrics import UInt8Image, bands, rgb_psnr
from sr_runner.imresize import imresize_uint8

Level = TypeVar("Level", bound=np.generic)

_PANEL = 288
_GAP = 10
_MARGIN = 12
_TITLE_SIZE, _NOTE_SIZE = 18, 14
_CAPTION = 52
_INK, _GREY, _PAPER = (24, 24, 24), (96, 96, 96), (255, 255, 255)


@dataclass(frozen=True)
class Crop:
    """A square of an image, in pixels."""

    top: int
    left: int
    size: int

    def of(self, image: npt.NDArray[Level]) -> npt.NDArray[Level]:
        """The part of `image` (H x W x C) inside the square."""
        return image[self.top : self.top + self.size, self.left : self.left + self.size]


def picture_strip(lr: UInt8Image, sr: UInt8Image, hr: UInt8Image, *, scale: int, size: int = 96) -> Image.Image:
    """Bicubic | SR | HR of the most detailed crop of `size` HR pixels, PSNR under each (RGB).

    All images are uint8 HWC. The crop depends only on `hr`, `scale` and `size`, so that all evaluations of all runs
    show the same one. Pixels are enlarged as they are, without smoothing. The PSNR of the crop stands beside that of
    the whole image, `scale` border pixels left out as in the metrics.
    """
    bicubic = imresize_uint8(lr, scale)
    crop = detailed_crop(hr, scale=scale, size=size)
    captions = [
        ("bicubic", _note(bicubic, hr, crop, border=scale)),
        ("SR", _note(sr, hr, crop, border=scale)),
        ("HR", f"{crop.size}x{crop.size} pixels at x {crop.left}, y {crop.top}, scale {scale}"),
    ]
    return side_by_side([crop.of(image) for image in (bicubic, sr, hr)], captions)


def detailed_crop(hr: UInt8Image, *, scale: int, size: int) -> Crop:
    """The square of `hr` that loses most when the image is shrunk by `scale`; smaller than `size` in a small image.

    Detail is the squared difference between a pixel and the mean of its scale x scale block, in integers: exact, and
    the same on every machine. Squares stand on the block grid and, where there is room, clear of the cropped border.
    """
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    side = max(1, min(size // scale, height, width))
    whole = hr[: height * scale, : width * scale]
    detail = np.concatenate([_detail(whole[rows], scale) for rows in bands(whole, multiple=scale)])
    sums = np.pad(detail, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    rows, columns = (1 if n > 2 else 0 for n in windows.shape)
    inner = windows[rows : windows.shape[0] - rows, columns : windows.shape[1] - columns]
    top, left = divmod(int(inner.argmax()), inner.shape[1])
    return Crop(top=(top + rows) * scale, left=(left + columns) * scale, size=side * scale)


def _detail(band: UInt8Image, scale: int) -> npt.NDArray[np.int64]:
    """Detail of each scale x scale block of `band`."""
    grey = band.sum(axis=2, dtype=np.int64)
    blocks = grey.reshape(len(band) // scale, scale, band.shape[1] // scale, scale)
    detail: npt.NDArray[np.int64] = (blocks * scale**2 - blocks.sum(axis=(1, 3), keepdims=True)) ** 2
    return np.asarray(detail.sum(axis=(1, 3)))


def side_by_side(panels: list[UInt8Image], captions: list[tuple[str, str]]) -> Image.Image:
    """Square panels in a row on white, each enlarged by a whole factor, its title and its note below it."""
    side = max(shown_size(len(panel)) for panel in panels)
    step = side + _GAP
    total = 2 * _MARGIN + step * len(panels) - _GAP
    sheet = Image.new("RGB", (total, 2 * _MARGIN + side + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title_font, note_font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_NOTE_SIZE)
    for index, (panel, (title, note)) in enumerate(zip(panels, captions, strict=True)):
        x, y = _MARGIN + index * step, _MARGIN
        shown = shown_size(len(panel))
        enlarged = Image.fromarray(np.ascontiguousarray(panel)).resize((shown, shown), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x, y))
        below = y + side + 6
        draw.text((x, below), title, fill=_INK, font=title_font)
        draw.text((x, below + _TITLE_SIZE + 6), note, fill=_GREY, font=note_font)
    return sheet


def shown_size(size: int) -> int:
    """The side of a panel of `size` pixels once it is enlarged."""
    return size * max(1, round(_PANEL / size))


def _note(image: UInt8Image, hr: UInt8Image, crop: Crop, *, border: int) -> str:
    inner = (slice(border, hr.shape[0] - border), slice(border, hr.shape[1] - border))
    here, everywhere = rgb_psnr(crop.of(image), crop.of(hr)), rgb_psnr(image[inner], hr[inner])
    return f"{decibels(here)} here, {decibels(everywhere)} whole image"


def decibels(psnr: float) -> str:
    """A PSNR for people."""
    return "identical" if math.isinf(psnr) else f"{psnr:.2f} dB"
