"""LR/HR pairs as decoded images in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import ClassVar, Protocol

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


class LrMaker(Protocol):
    """Makes the whole LR image of an HR image that comes without one."""

    weight: ClassVar[int]
    """Memory that it takes, in units of that of decoding the HR image."""

    def facts(self, hr: CachedImage) -> Facts:
        """What the LR image depends on."""

    def __call__(self, hr: CachedImage) -> Pixels:
        """The LR image of the HR image, cropped to a multiple of the scale."""


@dataclass(frozen=True)
class MatlabBicubic:
    """LR images as the papers' benchmarks have them."""

    weight: ClassVar[int] = 1
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


def cache_pairs(
    sources: Sequence[PairSource], *, scale: int, maker: LrMaker | None, cache: ImageCache, progress: bool
) -> list[CachedPair]:
    """Every pair of `sources`, decoded now, in several threads, where it is not in `cache` yet.

    LR images that do not come with the HR images are made by `maker`; with none they are left out. Raises
    `RequestError`, which names the file, for damaged images and for pairs whose sizes do not fit.
    """
    found = [_find(source, scale, maker, cache) for source in sources]
    if None in found:
        _build_all(list(dict.fromkeys(sources)), scale, maker, cache, progress)
        found = [_find(source, scale, maker, cache) for source in sources]
    return [pair for pair in found if pair is not None]


def _build_all(
    sources: Sequence[PairSource], scale: int, maker: LrMaker | None, cache: ImageCache, progress: bool
) -> None:
    text = "\n".join([str(scale), repr(maker), *(repr(source) for source in sources)])
    job = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    room = _Room(_PIXELS_AT_ONCE)
    # tqdm shows the bar only on terminals where `disable` is None.
    bar = tqdm(total=len(sources), desc="Decoding images", unit="image", disable=None if progress else True)
    with bar, cache.building(job), warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata: what matters about pixels raises
        builds = [pool.submit(_build, source, scale, maker, cache, job, room) for source in sources]
        try:
            for build in builds:
                build.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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


def _find(source: PairSource, scale: int, maker: LrMaker | None, cache: ImageCache) -> CachedPair | None:
    hr = cache.find(source.hr.name, source.hr.facts())
    if hr is None:
        return None
    if source.lr is None and maker is None:
        return CachedPair(source.name, source, None, hr, hr.height // scale, hr.width // scale)
    lr = cache.find(*_lr_key(source, hr, maker))
    return None if lr is None else _pair(source, lr, hr, scale)


def _build(source: PairSource, scale: int, maker: LrMaker | None, cache: ImageCache, job: str, room: _Room) -> None:
    def cached(name: str, facts: Facts, make: Callable[[], Pixels]) -> CachedImage:
        return cache.find(name, facts) or cache.store(name, facts, make(), job=job)

    weight = maker.weight if maker is not None and source.lr is None else 1
    with room.hold(weight * source.hr.area()):
        hr = cached(source.hr.name, source.hr.facts(), source.hr.read)
        if source.lr is not None:
            _pair(source, cached(*_lr_key(source, hr, maker), source.lr.read), hr, scale)
        elif maker is not None:
            if min(hr.height, hr.width) < scale:
                raise RequestError(
                    f"{source.hr}: {hr.width} x {hr.height} pixels are too few to be shrunk by scale={scale}."
                )
            cached(*_lr_key(source, hr, maker), partial(maker, hr))


def _lr_key(source: PairSource, hr: CachedImage, maker: LrMaker | None) -> tuple[str, Facts]:
    if source.lr is not None:
        return source.lr.name, source.lr.facts()
    assert maker is not None
    facts = maker.facts(hr)
    # One file an HR image, scale and kind of maker: an edited image's LR image replaces the old one.
    return f"{source.hr.name} {type(maker).__name__} {facts['scale']}", facts


def _cropped(hr: CachedImage, scale: int) -> Pixels:
    return hr.pixels()[: hr.height // scale * scale, : hr.width // scale * scale]


def _pair(source: PairSource, lr: CachedImage, hr: CachedImage, scale: int) -> CachedPair:
    """Check the sizes: LR is HR / scale, rounded either way where the HR image is no multiple of the scale."""
    allowed = scale * (source.slack + 1)
    if abs(lr.height * scale - hr.height) >= allowed or abs(lr.width * scale - hr.width) >= allowed:
        raise RequestError(
            f"{source.lr}: {lr.width} x {lr.height} pixels do not fit {source.hr} of {hr.width} x {hr.height} pixels "
            f"at scale={scale}; the LR image should have {hr.width // scale} x {hr.height // scale}."
        )
    return CachedPair(source.name, source, lr, hr, min(lr.height, hr.height // scale), min(lr.width, hr.width // scale))
