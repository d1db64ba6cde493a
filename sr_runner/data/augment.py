"""Samples that are mixed or changed at random before they are trained on. Off by default.

What becomes of sample `n` is a pure function of the seed and `n`, as its crop is. Pixels are mixed in whole numbers, so
every device makes the same ones. The kinds and their strengths are those of Yoo, Ahn and Sohn, "Rethinking Data
Augmentation for Image Super-resolution" (CVPR 2020), put to LR pictures that are smaller than the HR ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sr_runner.data import counter
from sr_runner.errors import RequestError, nearest

KINDS = ("mixup", "cutmix", "cutblur", "channel_shuffle")
PARTNER = 2**40
"""Sample n is mixed with sample n + PARTNER: no run gets as far, and no other process needs to be asked."""

_KIND, _SHARE, _TOP, _LEFT, _INSIDE, _CHANNELS = range(0xA06, 0xA0C)
"""Streams of random numbers apart from those of `sampling`."""
_SIDE = 0.7
"""Of the rectangle that is cut out, as a part of the patch's."""
_ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

Pictures = tuple[Tensor, Tensor]
"""LR (N x h x w x 3) and HR (N x H x W x 3), uint8."""


class Augment:
    """At most one of the kinds for each sample; `probabilities` says of each how often.

    - `mixup`: a mean of the sample and another one, with weights that are uniform (the paper draws them from
      Beta(1.2, 1.2), which is nearly that);
    - `cutmix`: another sample inside a random square of 0.7 times the side, or outside of it;
    - `cutblur`: inside the square, or outside, the LR picture is the mean of the HR pixels there. That makes a
      difference where a degradation or somebody's camera made the LR pictures;
    - `channel_shuffle`: the colours in another order, in both pictures.

    Raises `RequestError` in the words of the config.
    """

    def __init__(self, probabilities: Mapping[str, float]) -> None:
        for kind, value in probabilities.items():
            if kind not in KINDS:
                raise RequestError(
                    f"data.augment.{kind}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}.{nearest(kind, KINDS)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise RequestError(f"data.augment.{kind}={value!r}: expected a number from 0 to 1, how often.")
        if sum(probabilities.values()) > 1 + 1e-9:
            raise RequestError(
                f"data.augment={dict(probabilities)}: a sample is augmented in one way at most; expected numbers whose "
                "sum is 1 or less."
            )
        self.probabilities = {kind: float(probabilities[kind]) for kind in KINDS if probabilities.get(kind)}

    def __call__(
        self, pictures: Pictures, partners: Callable[[], Pictures], *, seed: int, n: npt.NDArray[np.int64]
    ) -> Pictures:
        """What is trained on of samples `n`; `partners()` are the samples `n` + `PARTNER`."""
        lr, hr = pictures
        scale = hr.shape[1] // lr.shape[1]
        drawn = counter.uniform(counter.bits(seed, _KIND, n))
        past = 0.0
        for kind, probability in self.probabilities.items():
            chosen = torch.from_numpy((past <= drawn) & (drawn < past + probability)).to(lr.device)
            past += probability
            if not chosen.any():
                continue
            if kind == "mixup":
                other_lr, other_hr = partners()
                share = torch.from_numpy(counter.below(counter.bits(seed, _SHARE, n), 257)).to(lr.device, torch.int32)
                made = _mean(lr, other_lr, share), _mean(hr, other_hr, share)
            elif kind == "channel_shuffle":
                order = _ORDERS[torch.from_numpy(counter.below(counter.bits(seed, _CHANNELS, n), 6))].to(lr.device)
                made = _shuffled(lr, order), _shuffled(hr, order)
            else:
                region = self._region(lr, seed, n)
                if kind == "cutmix":
                    other_lr, other_hr = partners()
                    of_hr = region.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                    made = torch.where(region, other_lr, lr), torch.where(of_hr, other_hr, hr)
                else:
                    made = torch.where(region, _shrunk(hr, scale), lr), hr
            where = chosen.view(-1, 1, 1, 1)
            lr, hr = torch.where(where, made[0], lr), torch.where(where, made[1], hr)
        return lr, hr

    @staticmethod
    def _region(lr: Tensor, seed: int, n: npt.NDArray[np.int64]) -> Tensor:
        """N x h x w x 1: where the other picture is to be."""
        size = lr.shape[1]
        side = max(1, round(_SIDE * size))
        top, left = (
            torch.from_numpy(counter.below(counter.bits(seed, stream, n), size - side + 1)).to(lr.device).view(-1, 1)
            for stream in (_TOP, _LEFT)
        )
        pixels = torch.arange(size, device=lr.device)[None]
        rows, columns = (pixels >= top) & (pixels < top + side), (pixels >= left) & (pixels < left + side)
        square = rows[:, :, None, None] & columns[:, None, :, None]
        inside = torch.from_numpy(counter.below(counter.bits(seed, _INSIDE, n), 2)).to(lr.device).bool()
        return square == inside.view(-1, 1, 1, 1)


def _mean(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` (0 to 256) parts of `one` and the rest of `other`."""
    weight = share.view(-1, 1, 1, 1)
    return ((one.int() * weight + other.int() * (256 - weight) + 128) >> 8).to(torch.uint8)


def _shuffled(pictures: Tensor, order: Tensor) -> Tensor:
    return pictures.gather(3, order.view(-1, 1, 1, 3).expand_as(pictures))


def _shrunk(hr: Tensor, scale: int) -> Tensor:
    """The mean of each `scale` x `scale` pixels, rounded; sums of bytes are exact in float32."""
    sums = functional.avg_pool2d(hr.permute(0, 3, 1, 2).float(), scale, divisor_override=1)
    return sums.div(scale * scale).round().permute(0, 2, 3, 1).to(torch.uint8)
