"""What training will see: samples as a picture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from sr_runner.data.base import Data

_MARGIN, _CAPTION = 4, 14


def preview(data: Data, count: int) -> Image.Image:
    """The first `count` samples of prepared data in a grid, each as LR beside HR with its number below.

    LR pixels are shown as squares, so that what a degradation did to them can be seen.
    """
    with data.stream(0, count) as batches:
        lr, hr = ((batch * 255).round().byte().permute(0, 2, 3, 1).numpy() for batch in next(batches))
    patch, scale = hr.shape[1], data.scale
    columns = max(1, math.ceil(math.sqrt(count / 2)))
    cell = 2 * patch + 2 * _MARGIN, patch + _CAPTION + _MARGIN
    page = Image.new("RGB", (columns * cell[0] + _MARGIN, math.ceil(count / columns) * cell[1] + _MARGIN), "white")
    text = ImageDraw.Draw(page)
    for number, (small, large) in enumerate(zip(lr, hr, strict=True)):
        left, top = number % columns * cell[0] + _MARGIN, number // columns * cell[1] + _MARGIN
        page.paste(Image.fromarray(np.repeat(np.repeat(small, scale, axis=0), scale, axis=1)), (left, top))
        page.paste(Image.fromarray(large), (left + patch + _MARGIN // 2, top))
        caption = f"sample {number}: LR, HR"
        fits = text.textlength(caption) <= cell[0]
        text.text((left, top + patch + 1), caption if fits else str(number), fill="black")
    return page
