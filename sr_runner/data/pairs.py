"""LR/HR pairs as decoded images in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from tqdm.auto import tqdm

from sr_runner.data.batches import to_batch
from sr_runner.data.cache import CachedImage, Facts, ImageCache
from sr_runner.data.degradations import Degradation
from sr_runner.data.images import Pixels
from sr_runner.data.sources import DECODER, PairSource
from sr_runner.errors import RequestError
from sr_runner.imresize import imresize_uint8

_PIXELS_AT_ONCE = 64_000_000
"""Decoded by all threads together (a larger image is decoded by itself); at some 10 bytes of memory each."""


@dataclass(frozen=True)
class CachedPair:
    """A decoded pair. `height` and `width` are those of the LR image as far as the HR image covers it.

    `lr` is None where LR pictures are made from crops of the HR image later on.
    """

    name: str
    source: PairSource
    lr: CachedImage | None
    hr: CachedImage
    height: int
    width: int

    def kept_by(self, make_again: Callable[[], object]) -> CachedPair:
        """The pair whose images are made again where the cache has lost them."""
        lr = self.lr and replace(self.lr, make_again=make_again)
        return replace(self, lr=lr, hr=replace(self.hr, make_again=make_again))


@dataclass(frozen=True)
class MatlabBicubic:
    """LR images as the papers' benchmarks have them, of HR images cropped to a multiple of the scale."""

    weight: ClassVar[int] = 1
    """Memory that it takes, in units of that of decoding the HR image."""

    scale: int

    def facts(self, hr: CachedImage) -> Facts:
        return {"matlab bicubic of": hr.digest, "scale": self.scale, "decoder": DECODER}

    def __call__(self, hr: CachedImage) -> Pixels:
        return imresize_uint8(_cropped(hr, self.scale), Fraction(1, self.scale))


@dataclass(frozen=True)
class Degraded:
    """LR images by the degradation that is trained on, the same ones in every run: they follow from the HR image."""

    weight: ClassVar[int] = 30
    degradation: Degradation
    scale: int

    def facts(self, hr: CachedImage) -> Facts:
        steps = hashlib.sha256(self.degradation.identity.encode()).hexdigest()
        return {"degraded": hr.digest, "by": steps, "scale": self.scale, "decoder": DECODER}

    def __call__(self, hr: CachedImage) -> Pixels:
        picture = to_batch(torch.from_numpy(_cropped(hr, self.scale).copy())[None], "cpu")
        n = np.array([int(hr.digest[:12], 16)])
        lr = self.degradation(picture, scale=self.scale, seed=0, n=n)
        return lr[0].permute(1, 2, 0).contiguous().numpy()


LrMaker = MatlabBicubic | Degraded
Get = Callable[[str, Facts, Callable[[], Pixels]], CachedImage | None]
"""`get(name, facts, make)`: an image in the cache, which may be made, or None."""


def cache_pairs(
    sources: Sequence[PairSource], *, scale: int, maker: LrMaker | None, cache: ImageCache, progress: bool
) -> list[CachedPair]:
    """Every pair of `sources`, decoded now, in several threads, where it is not in `cache` yet.

    LR images that do not come with the HR images are made by `maker`; with none they are left out. Raises
    `RequestError`, which names the file, for damaged images and for pairs whose sizes do not fit.
    """
    unique = list(dict.fromkeys(sources))
    pairs = [_pair(source, scale, maker, lambda name, facts, make: cache.find(name, facts)) for source in unique]
    if None in pairs:
        pairs = _build_all(unique, scale, maker, cache, progress)
    again = partial(cache_pairs, scale=scale, maker=maker, cache=cache, progress=False)
    by_source = {pair.source: pair.kept_by(partial(again, [pair.source])) for pair in pairs if pair is not None}
    return [by_source[source] for source in sources]


def _build_all(
    sources: Sequence[PairSource], scale: int, maker: LrMaker | None, cache: ImageCache, progress: bool
) -> list[CachedPair | None]:
    text = "\n".join([str(scale), repr(maker), *(repr(source) for source in sources)])
    job = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    room = _Room(_PIXELS_AT_ONCE)

    def get(name: str, facts: Facts, make: Callable[[], Pixels]) -> CachedImage:
        return cache.find(name, facts) or cache.store(name, facts, make(), job=job)

    def build(source: PairSource) -> CachedPair | None:
        weight = maker.weight if maker is not None and source.lr is None else 1
        with room.hold(weight * source.hr.area()):
            return _pair(source, scale, maker, get)

    with cache.building(job), warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata: what matters about pixels raises
        # tqdm shows the bar only on terminals where `disable` is None.
        disable = None if progress else True
        builds = pool.map(build, sources)
        try:
            return list(tqdm(builds, "Decoding images", len(sources), unit="image", disable=disable))
        finally:
            pool.shutdown(cancel_futures=True)


def _threads() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


class _Room:
    """Lets threads in as long as they do not hold more than `limit` pixels together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + pixels <= self._limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


def _pair(source: PairSource, scale: int, maker: LrMaker | None, get: Get) -> CachedPair | None:
    hr = get(source.hr.name, source.hr.facts(), source.hr.read)
    if hr is None:
        return None
    if source.lr is not None:
        lr = get(source.lr.name, source.lr.facts(), source.lr.read)
        return None if lr is None else _fitting(source, lr, hr, scale)
    if maker is None:
        return CachedPair(source.name, source, None, hr, hr.height // scale, hr.width // scale)
    if min(hr.height, hr.width) < scale:
        raise RequestError(f"{source.hr}: {hr.width} x {hr.height} pixels are too few to be shrunk by scale={scale}.")
    # One file an HR image, scale and kind of maker: an edited image's LR image replaces the old one.
    lr = get(f"{source.hr.name} {type(maker).__name__} {scale}", maker.facts(hr), partial(maker, hr))
    return None if lr is None else _fitting(source, lr, hr, scale)


def _cropped(hr: CachedImage, scale: int) -> Pixels:
    return hr.pixels()[: hr.height // scale * scale, : hr.width // scale * scale]


def _fitting(source: PairSource, lr: CachedImage, hr: CachedImage, scale: int) -> CachedPair:
    """Check the sizes: LR is HR / scale, rounded either way where the HR image is no multiple of the scale."""
    allowed = scale * (source.slack + 1)
    if abs(lr.height * scale - hr.height) >= allowed or abs(lr.width * scale - hr.width) >= allowed:
        raise RequestError(
            f"{source.lr}: {lr.width} x {lr.height} pixels do not fit {source.hr} of {hr.width} x {hr.height} pixels "
            f"at scale={scale}; the LR image should have {hr.width // scale} x {hr.height // scale}."
        )
    return CachedPair(source.name, source, lr, hr, min(lr.height, hr.height // scale), min(lr.width, hr.width // scale))
