"""Self-ensemble: the mean of what a network makes of an image in its eight orientations (EDSR, Lim et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from sr_runner.inference.tiling import Upscale


def self_ensemble(upscale: Upscale) -> Upscale:
    """`upscale` eight times over: on each flip and rotation of the LR image, turned back and averaged, not clipped.

    It costs eight times the time and the memory of one pass. Put tiling inside (`self_ensemble(tiled)`) or outside;
    the results agree.
    """

    def upscale_all(lr: Tensor) -> Tensor:
        total: Tensor | None = None
        for transpose in (False, True):
            for flip in ((), (-1,), (-2,), (-1, -2)):
                turned = lr.flip(flip) if flip else lr
                sr = upscale(turned.transpose(-1, -2) if transpose else turned)
                sr = sr.transpose(-1, -2) if transpose else sr
                sr = (sr.flip(flip) if flip else sr).float()
                total = sr if total is None else total + sr
        assert total is not None
        return total / 8

    return upscale_all
