"""Which image, which crop and which flips sample `n` gets: a pure function of (seed, n)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sr_runner.data import counter

Indices = npt.NDArray[np.int64]

_ORDER, _IMAGE, _TOP, _LEFT, _FLIP, _ROTATE = range(6)
"""The streams of random numbers. Changing one changes every run's data: the golden digest in the tests pins them."""

_BLOCK = 1024
"""Samples drawn at once and kept: numpy's overhead of a draw is that of a thousand."""

_RECENT = 8
"""Blocks that are kept: threads that draw ahead may straddle two of them, and two more with what is mixed in."""


class Draws(NamedTuple):
    """Where samples come from, one array element each, in LR pixels of the image `image`.

    The sample is the crop, mirrored left to right where `flip` is 1, then rotated counter-clockwise by 90 degrees
    `quarter_turns` times.
    """

    image: Indices
    top: Indices
    left: Indices
    flip: Indices
    quarter_turns: Indices


class Sampler:
    """Draws samples from images of the given LR sizes.

    `lr_sizes` has one row (height, width) per image, all at least `lr_patch`. Every epoch shows each image once, in an
    order of its own; crops are uniform over the positions that fit, on the LR grid so that LR and HR stay aligned.
    Threads may share a sampler.
    """

    def __init__(self, lr_sizes: Indices, *, lr_patch: int, seed: int, flip: bool, rotate: bool) -> None:
        self._positions = np.asarray(lr_sizes, dtype=np.int64) - lr_patch + 1
        self._epochs = max(1, _BLOCK // len(self._positions))  # in one block of `_order`
        self._seed = seed
        self._flip = flip
        self._rotate = rotate
        self._tables = lru_cache(_RECENT)(self._table)
        self._orders = lru_cache(_RECENT)(self._order)

    def draw(self, first: int, count: int) -> Draws:
        """Samples first .. first + count - 1."""
        return Draws(*_span(self._tables, _BLOCK, first, count))

    def _table(self, block: int) -> Indices:
        """The fields of `Draws` as rows, for the samples of one block."""
        n = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.int64)
        image = _span(self._orders, self._epochs * len(self._positions), block * _BLOCK, _BLOCK)[0]
        rows, columns = self._positions[image].T
        return np.stack(
            [
                image,
                counter.below(counter.bits(self._seed, _TOP, n), rows),
                counter.below(counter.bits(self._seed, _LEFT, n), columns),
                counter.below(counter.bits(self._seed, _FLIP, n), 2 if self._flip else 1),
                counter.below(counter.bits(self._seed, _ROTATE, n), 4 if self._rotate else 1),
            ]
        )

    def _order(self, block: int) -> Indices:
        """Image indices, as one row, of a whole number of epochs: one permutation after the other."""
        epoch = np.arange(block * self._epochs, (block + 1) * self._epochs, dtype=np.int64)
        key = counter.bits(self._seed, _ORDER, epoch)
        ranks = counter.bits(key[:, None], _IMAGE, np.arange(len(self._positions), dtype=np.int64)[None])
        return np.argsort(ranks, axis=1, kind="stable").reshape(1, -1)


def _span(blocks: Callable[[int], Indices], length: int, first: int, count: int) -> Indices:
    """Columns first .. first + count - 1 of the table that `blocks` gives `length` columns at a time."""
    begin, skip = divmod(first, length)
    joined = np.concatenate([blocks(block) for block in range(begin, (first + count - 1) // length + 1)], axis=1)
    return joined[:, skip : skip + count]
