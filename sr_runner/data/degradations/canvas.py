"""What degradation steps work on: a batch of pictures of different sizes, and random numbers that belong to samples.

A step gives every sample parameters of its own, sizes included, and still does the whole batch at once: pictures lie in
the upper left corners of a common canvas, and the host knows how large each of them is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr_runner.data import counter

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Canvas:
    """`pixels` (N x 3 x H x W float32, nominally in [0, 1]) hold pictures of `heights` x `widths` pixels each.

    What lies outside a picture has no meaning. `original` is the size of the HR pictures, `target` that of the LR
    pictures that the pipeline shall end with.
    """

    pixels: Tensor
    heights: Integers
    widths: Integers
    original: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(cls, hr: Tensor, scale: int) -> Canvas:
        """HR pictures (N x 3 x H x W in [0, 1]) before any step."""
        count, _, height, width = hr.shape
        heights, widths = np.full(count, height, dtype=np.int64), np.full(count, width, dtype=np.int64)
        return cls(hr, heights, widths, (height, width), (height // scale, width // scale))

    @property
    def scale(self) -> float:
        """HR size by LR size."""
        return self.original[0] / self.target[0]

    def with_pixels(self, pixels: Tensor) -> Canvas:
        """The same sizes with other pixels."""
        return replace(self, pixels=pixels)

    def select(self, chosen: npt.NDArray[np.bool_]) -> Canvas:
        """The pictures at which `chosen` (N) is true."""
        index = torch.from_numpy(np.flatnonzero(chosen)).to(self.pixels.device)
        return replace(self, pixels=self.pixels[index], heights=self.heights[chosen], widths=self.widths[chosen])

    def merge(self, chosen: npt.NDArray[np.bool_], other: Canvas) -> Canvas:
        """These pictures with those of `other` in the places at which `chosen` is true; the canvas fits both."""
        height, width = (max(sides) for sides in zip(self.pixels.shape[2:], other.pixels.shape[2:], strict=True))
        pixels = self.pixels.new_zeros(len(self.heights), 3, height, width)
        index = torch.from_numpy(np.flatnonzero(chosen)).to(self.pixels.device)
        pixels[:, :, : self.pixels.shape[2], : self.pixels.shape[3]] = self.pixels
        pixels[index, :, : other.pixels.shape[2], : other.pixels.shape[3]] = other.pixels
        heights, widths = self.heights.copy(), self.widths.copy()
        heights[chosen], widths[chosen] = other.heights, other.widths
        return replace(self, pixels=pixels, heights=heights, widths=widths)

    def gather(self, rows: Integers, columns: Integers) -> Tensor:
        """N x 3 x R x C pixels at `rows` (N x R) and `columns` (N x C) of each picture."""
        count, channels, _, width = self.pixels.shape
        row, column = (torch.from_numpy(index).to(self.pixels.device) for index in (rows, columns))
        tall = self.pixels.gather(2, row[:, None, :, None].expand(count, channels, row.shape[1], width))
        return tall.gather(3, column[:, None, None, :].expand(count, channels, row.shape[1], column.shape[1]))


def per_picture(values: npt.NDArray[np.number], like: Tensor) -> Tensor:
    """One number a picture, shaped to be combined with N x 3 x H x W pixels."""
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, 1, 1, 1)


class Draw:
    """Random numbers of samples `n` for one step: pure functions of (seed, place of the step, n)."""

    def __init__(self, key: counter.UInt64, n: Integers) -> None:
        self._key = key
        self._n = n

    @classmethod
    def of(cls, seed: int, n: Integers) -> Draw:
        """For a pipeline as a whole; `child` gives each of its steps numbers of its own."""
        return cls(counter.bits(seed, _DEGRADATION, 0), n)

    def child(self, place: int) -> Draw:
        """For the step at `place` within this one."""
        return Draw(counter.bits(self._key, _CHILD, place), self._n)

    def select(self, chosen: npt.NDArray[np.bool_]) -> Draw:
        """For the samples at which `chosen` is true."""
        return Draw(self._key, self._n[chosen])

    def uniform(self, name: int, low: Floats | float = 0, high: Floats | float = 1) -> Floats:
        """One number in [low, high) a sample; `name` (an integer) differs between the draws of a step."""
        return low + (high - low) * counter.uniform(counter.bits(self._key, name, self._n))

    def below(self, name: int, bound: int) -> Integers:
        """One integer in [0, bound) a sample."""
        return counter.below(counter.bits(self._key, name, self._n), bound)

    def chance(self, name: int, probability: float) -> npt.NDArray[np.bool_]:
        """True with `probability`."""
        return self.uniform(name) < probability

    def choice(self, name: int, weights: Floats) -> Integers:
        """An index into `weights`, drawn in proportion to them."""
        edges = np.cumsum(weights) / np.sum(weights)
        return np.minimum(np.searchsorted(edges, self.uniform(name), side="right"), len(weights) - 1)

    def per_pixel(self, name: int, canvas: Canvas, channels: int = 3) -> tuple[Tensor, Tensor]:
        """Two independent numbers in (0, 1) for each pixel (N x channels x H x W float32), drawn on the device.

        They belong to a pixel's place in the picture, whatever the size of the canvas.
        """
        keys = counter.bits(self._key, name, self._n).view(np.int64)
        height, width = canvas.pixels.shape[2:]
        place = [torch.arange(side, device=canvas.pixels.device) for side in (channels, height, width)]
        index = (place[0][:, None, None] << 48) + (place[1][:, None] << 24) + place[2]
        random = _mix(index + torch.from_numpy(keys).to(canvas.pixels.device)[:, None, None, None])
        return _unit(random >> 40), _unit(random >> 16)

    def normal(self, name: int, canvas: Canvas, channels: int = 3) -> Tensor:
        """A standard normal number for each pixel, by Box and Muller's transform."""
        radius, angle = self.per_pixel(name, canvas, channels)
        return radius.log_().mul_(-2).sqrt_().mul_(angle.mul_(2 * torch.pi).cos_())


_DEGRADATION, _CHILD = 0x5DE6, 0xC417D
"""Streams of random numbers apart from those of `sampling`."""


def _mix(z: Tensor) -> Tensor:
    """`counter`'s finaliser in torch's int64, whose multiplication wraps around and whose shift copies the sign."""
    z = _xor_shifted(z, 30) * -0x40A7B892E31B1A47
    z = _xor_shifted(z, 27) * -0x6B2FB644ECCEEE15
    return _xor_shifted(z, 31)


def _xor_shifted(z: Tensor, bits: int) -> Tensor:
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))


def _unit(random: Tensor) -> Tensor:
    """The low 24 bits as float32 in (0, 1)."""
    return ((random & 0xFFFFFF).to(torch.float32) + 0.5) * 2.0**-24
