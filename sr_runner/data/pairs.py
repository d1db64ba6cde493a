"""LR/HR pairs: where they come from, and as decoded images in the cache."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Protocol

from tqdm.auto import tqdm

from sr_runner.data.cache import CachedImage, Facts, ImageCache
from sr_runner.data.images import Pixels, read_image
from sr_runner.errors import RequestError
from sr_runner.imresize import imresize_uint8

DECODER = 1
"""Raised when reading or shrinking would give other pixels than before, so that caches are built anew."""


class ImageSource(Protocol):
    """An encoded image somewhere. `str` of it tells a person where."""

    @property
    def name(self) -> str:
        """What tells it apart from every other image, on this machine."""

    def facts(self) -> Facts:
        """What changes when the image does, cheaply. Raises `RequestError` where it is gone."""

    def read(self) -> Pixels:
        """H x W x 3 uint8 RGB. Raises `RequestError` where it is damaged."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.absolute())

    def facts(self) -> Facts:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise RequestError(f"{self.path}: cannot be read ({error.strerror}).") from error
        return {"file": self.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "decoder": DECODER}

    def read(self) -> Pixels:
        return read_image(self.path)

    def __str__(self) -> str:
        return os.fspath(self.path)


@dataclass(frozen=True)
class PairSource:
    """An HR image, and its LR image where that is not to be made by MATLAB's bicubic.

    `slack` is by how many LR pixels the size of the LR image may differ from HR / scale; what both cover is used.
    """

    name: str
    hr: ImageSource
    lr: ImageSource | None = None
    slack: int = 0


@dataclass(frozen=True)
class CachedPair:
    """A decoded pair. `height` and `width` are those of the LR image as far as the HR image covers it."""

    name: str
    source: PairSource
    lr: CachedImage
    hr: CachedImage
    height: int
    width: int


def cache_pairs(sources: Sequence[PairSource], *, scale: int, cache: ImageCache, progress: bool) -> list[CachedPair]:
    """Every pair of `sources`, decoded now where it is not in `cache` yet, one image in memory at a time.

    Raises `RequestError`, which names the file, for damaged images and for pairs whose sizes do not fit.
    """
    found = [_find(source, scale, cache) for source in sources]
    if None in found:
        job = hashlib.sha256("\n".join([str(scale), *(repr(source) for source in sources)]).encode(errors="replace"))
        # A hidden bar must not write to a pipe: tqdm's `None` shows it on terminals alone.
        bar = partial(tqdm, desc="Decoding images", unit="pair", disable=None if progress else True)
        with cache.building(job.hexdigest()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata: what matters about pixels raises
            return [_build(source, scale, cache, job.hexdigest()) for source in bar(sources)]
    return [pair for pair in found if pair is not None]


def _find(source: PairSource, scale: int, cache: ImageCache) -> CachedPair | None:
    hr = cache.find(source.hr.name, source.hr.facts())
    if hr is None:
        return None
    if source.lr is None:
        lr = cache.find(*_bicubic(source, hr, scale))
    else:
        lr = cache.find(source.lr.name, source.lr.facts())
    return None if lr is None else _pair(source, lr, hr, scale)


def _build(source: PairSource, scale: int, cache: ImageCache, job: str) -> CachedPair:
    def cached(name: str, facts: Facts, make: Callable[[], Pixels]) -> CachedImage:
        return cache.find(name, facts) or cache.store(name, facts, make(), job=job)

    hr = cached(source.hr.name, source.hr.facts(), source.hr.read)
    if source.lr is None:
        lr = cached(*_bicubic(source, hr, scale), partial(_shrink, hr, scale, source))
    else:
        lr = cached(source.lr.name, source.lr.facts(), source.lr.read)
    return _pair(source, lr, hr, scale)


def _bicubic(source: PairSource, hr: CachedImage, scale: int) -> tuple[str, Facts]:
    name = f"{source.hr.name} shrunk by {scale}"
    return name, {"matlab bicubic of": hr.digest, "scale": scale, "decoder": DECODER}


def _shrink(hr: CachedImage, scale: int, source: PairSource) -> Pixels:
    """MATLAB's bicubic of the HR image cropped to a multiple of the scale, as the papers' benchmarks are made."""
    height, width = hr.height // scale * scale, hr.width // scale * scale
    if not height or not width:
        raise RequestError(f"{source.hr}: {hr.width} x {hr.height} pixels are too few to be shrunk by scale={scale}.")
    return imresize_uint8(hr.pixels()[:height, :width], Fraction(1, scale))


def _pair(source: PairSource, lr: CachedImage, hr: CachedImage, scale: int) -> CachedPair:
    """Check the sizes: LR is HR / scale, rounded either way where the HR image is no multiple of the scale."""
    allowed = scale * (source.slack + 1)
    if abs(lr.height * scale - hr.height) >= allowed or abs(lr.width * scale - hr.width) >= allowed:
        raise RequestError(
            f"{source.lr}: {lr.width} x {lr.height} pixels do not fit {source.hr} of {hr.width} x {hr.height} pixels "
            f"at scale={scale}; the LR image should have {hr.width // scale} x {hr.height // scale}."
        )
    return CachedPair(source.name, source, lr, hr, min(lr.height, hr.height // scale), min(lr.width, hr.width // scale))
