"""The baseline that every SR result is held against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sr_runner.imresize import imresize_uint8


def bicubic_upscale(lr: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """`lr` (uint8, h x w x 3) enlarged by MATLAB's bicubic to (h * scale) x (w * scale) x 3, uint8."""
    return imresize_uint8(lr, scale)
