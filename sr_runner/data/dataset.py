"""Pairs in, batches out: what every data set of the runner can do, whatever its images come from."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from sr_runner.data import checks
from sr_runner.data.assemble import assemble
from sr_runner.data.cache import ImageCache, MappedImages
from sr_runner.data.images import Pixels
from sr_runner.data.loader import Loader
from sr_runner.data.pairs import CachedPair, PairSource, cache_pairs
from sr_runner.data.sampling import Sampler
from sr_runner.errors import RequestError

logger = logging.getLogger(__name__)

_MAPPED_HR, _MAPPED_LR = 384 * 2**20, 64 * 2**20
"""Bytes of images mapped at a time: with the batches they stay well below 1 GB, however large the data set."""


@dataclass(frozen=True)
class Pair:
    """A validation pair: H x W x 3 uint8 RGB views into the cache; HR is exactly `scale` times LR in both sizes."""

    name: str
    lr: Pixels
    hr: Pixels


class PairSources(Protocol):
    """The images of a data set, before anything is decoded."""

    train: Sequence[PairSource]
    valid: Sequence[PairSource]

    def fetch(self, *, progress: bool) -> None:
        """Get what is not on this machine yet; fills `train` and `valid` where they depend on it."""

    def summary(self) -> dict[str, str | int]:
        """What a person should know of where the images come from; has at least `name` and `source`."""


class _RequiredOptions(TypedDict):
    scale: int
    patch_size: int
    batch_size: int
    seed: int
    cache_dir: str | Path


class PairOptions(_RequiredOptions, total=False):
    """The arguments that every data set has; `PairData` tells what they mean."""

    workers: int
    valid_images: int | None
    flip: bool
    rotate: bool


class PairData:
    """Batches of random crops for training and whole pairs for validation.

    Sample `n` is a pure function of (`seed`, `n`): `samples` and `batches` may start anywhere, with any batch size and
    any number of workers. The constructor checks its arguments and nothing else; `prepare` comes before all the rest.

    `patch_size` is in HR pixels. `valid_images` limits validation to the first so many pairs (None: all). `cache_dir`
    holds the decoded images. Raises `RequestError` in the words of the config.
    """

    def __init__(
        self,
        sources: PairSources,
        *,
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        cache_dir: str | Path,
        workers: int = 1,
        valid_images: int | None = None,
        flip: bool = True,
        rotate: bool = True,
    ) -> None:
        self.scale = checks.whole_number("scale", scale, at_least=1)
        self.patch_size = checks.patch_size(patch_size, scale=scale)
        self.batch_size = checks.whole_number("data.batch_size", batch_size, at_least=1)
        self._seed = checks.whole_number("seed", seed, at_least=0)
        self._workers = checks.whole_number("data.workers", workers, at_least=0)
        if valid_images is not None:
            checks.whole_number("data.valid_images", valid_images, at_least=0)
        self._valid_images = valid_images
        self._flip, self._rotate = bool(flip), bool(rotate)
        self._cache = ImageCache(Path(cache_dir).expanduser())
        self._sources = sources
        self._prepared: _Prepared | None = None

    def prepare(self, progress: bool = True) -> None:
        """Fetch and decode what is not in the cache yet; `progress` shows a bar on a terminal.

        Raises `RequestError`, which names the file, for damaged images, images smaller than the patch and pairs whose
        sizes do not fit.
        """
        if self._prepared is not None:
            return
        self._sources.fetch(progress=progress)
        train = cache_pairs(self._sources.train, scale=self.scale, cache=self._cache, progress=progress)
        for pair in train:
            self._check_covers_patch(pair)
        chosen = self._sources.valid[: self._valid_images]
        valid = cache_pairs(chosen, scale=self.scale, cache=self._cache, progress=progress)
        sampler = Sampler(
            np.array([(pair.height, pair.width) for pair in train]),
            lr_patch=self.patch_size // self.scale,
            seed=self._seed,
            flip=self._flip,
            rotate=self._rotate,
        )
        self._prepared = _Prepared(train, valid, self.scale, sampler)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the training images' content, in order, and of what is done to them.

        Paths, times, batch size and patch size are no part of it, and validation images are not either.
        """
        digest = hashlib.sha256(f"x{self.scale} flip={self._flip} rotate={self._rotate}".encode())
        for pair in self._ready.train:
            digest.update(f" {pair.hr.digest} {pair.lr.digest}".encode())
        return digest.hexdigest()

    def summary(self) -> dict[str, str | int]:
        """Name, source, scale and numbers of images, for the log and the tracker; works before `prepare`."""
        return {
            **self._sources.summary(),
            "scale": self.scale,
            "train_images": len({source.name for source in self._sources.train}),
            "valid_images": len(self._sources.valid[: self._valid_images]),
        }

    @property
    def valid(self) -> Sequence[Pair]:
        """The first `valid_images` validation pairs."""
        return self._ready.valid

    def samples(self, first: int, count: int) -> tuple[Pixels, Pixels]:
        """LR (count x p/scale x p/scale x 3) and HR (count x p x p x 3) uint8 of samples first .. first + count - 1."""
        lr_patch = self.patch_size // self.scale
        lr = np.empty((count, lr_patch, lr_patch, 3), np.uint8)
        hr = np.empty((count, self.patch_size, self.patch_size, 3), np.uint8)
        self._ready.fill(first, lr, hr)
        return lr, hr

    def batches(self, first: int, count: int | None = None, *, pin_memory: bool = False) -> Loader:
        """An endless loader; its first batch holds samples first .. first + count - 1 (`count`: `batch_size`).

        `pin_memory` is for batches that go to a CUDA device.
        """
        ready = self._ready
        return Loader(
            lambda start, _, lr, hr: ready.fill(start, lr.numpy(), hr.numpy()),
            first=first,
            count=count or self.batch_size,
            lr_patch=self.patch_size // self.scale,
            hr_patch=self.patch_size,
            workers=self._workers,
            pin_memory=pin_memory,
        )

    @property
    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise RuntimeError("prepare() of the data comes first.")
        return self._prepared

    def _check_covers_patch(self, pair: CachedPair) -> None:
        smallest = min(pair.height, pair.width) * self.scale
        if smallest < self.patch_size:
            fitting = f"data.patch_size={smallest} or less would do" if smallest else "it is smaller than one LR pixel"
            raise RequestError(
                f"{pair.source.hr}: {pair.hr.width} x {pair.hr.height} pixels are less than "
                f"data.patch_size={self.patch_size}; {fitting}, or take the image out."
            )


_Kind = TypeVar("_Kind", bound=type[PairData])


def shows_options(kind: _Kind) -> _Kind:
    """Class decorator: the signature lists what `**options` stands for, for `help()` and for checks of configs."""
    own = [p for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [p for p in inspect.signature(PairData).parameters.values() if p.kind is p.KEYWORD_ONLY]
    kind.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return kind


class _Prepared:
    """A data set whose images are all in the cache."""

    def __init__(self, train: list[CachedPair], valid: list[CachedPair], scale: int, sampler: Sampler) -> None:
        self.train = train
        self.valid = [_cropped(pair, scale) for pair in valid]
        self._scale = scale
        self._sampler = sampler
        self._hr = MappedImages([pair.hr for pair in train], budget=_MAPPED_HR)
        self._lr = MappedImages([pair.lr for pair in train], budget=_MAPPED_LR)

    def fill(self, first: int, lr: Pixels, hr: Pixels) -> None:
        """Fill the batch `lr`, `hr` with the samples from `first` on."""
        draws = self._sampler.draw(first, len(lr))
        assemble(self._lr, draws, lr, factor=1)
        assemble(self._hr, draws, hr, factor=self._scale)


def _cropped(pair: CachedPair, scale: int) -> Pair:
    lr = pair.lr.pixels()[: pair.height, : pair.width]
    hr = pair.hr.pixels()[: pair.height * scale, : pair.width * scale]
    return Pair(pair.name, lr, hr)


def to_batch(images: Tensor, device: torch.device | str, channels_last: bool = True) -> Tensor:
    """N x H x W x 3 uint8 to N x 3 x H x W float32 in [0, 1] on `device`; pinned memory is copied without waiting."""
    moved = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return moved.to(torch.float32, memory_format=layout).div_(255)
