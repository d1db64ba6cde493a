"""Pairs in, batches out: what every data set of the runner can do, whatever its images come from."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Required, TypedDict

import numpy as np
import torch

from sr_runner.data import checks
from sr_runner.data.augment import Augment
from sr_runner.data.base import LazyPairs, Pair
from sr_runner.data.batches import FloatBatches, Samples
from sr_runner.data.cache import ImageCache, MappedImages
from sr_runner.data.crops import HostImages, Images, ResidentImages
from sr_runner.data.degradations import Degradation
from sr_runner.data.images import Pixels
from sr_runner.data.loader import Loader
from sr_runner.data.pairs import CachedPair, Degraded, MatlabBicubic, cache_pairs
from sr_runner.data.sampling import Sampler
from sr_runner.data.sources import PairSource, Photographs
from sr_runner.errors import RequestError, check_choice
from sr_runner.files import folder_named

logger = logging.getLogger(__name__)

_MAPPED_HR, _MAPPED_LR = 160 * 2**20, 32 * 2**20
"""Bytes of images mapped at a time: with the batches they stay well below 1 GB, however large the data set."""


class PairOptions(TypedDict, total=False):
    """The arguments that every data set has; `PairData` explains them."""

    scale: Required[int]
    patch_size: Required[int]
    batch_size: Required[int]
    seed: Required[int]
    cache_dir: Required[str | Path]
    workers: int
    valid_images: int | None
    flip: bool
    rotate: bool
    cache: str
    preview: int
    augment: Mapping[str, float] | None
    patch_schedule: Mapping[int, Mapping[str, int]] | None


class PairData:
    """Random crops and whole pairs of images (see `Data`), whatever those come from.

    `patch_size` is in HR pixels. `valid_images`: validate with the first N pairs only (None: all). `cache_dir`
    holds the decoded images; with `cache="device"` the training images are copied to the device that `stream` is for,
    with `"disk"` they stay where they are. `degradation` makes LR pictures: `"bicubic"` (MATLAB's, of whole images) or
    a `Degradation`, of every crop anew. `augment`: how often samples are changed at random, by kind (see `Augment`).
    `patch_schedule`: other sizes from some step on, `{200000: {patch_size: 256, batch_size: 8}}`; the batch can only
    become smaller, and a step draws the first of the samples that it would have drawn otherwise. `preview` is for
    whoever runs this: how many samples to show instead of training. Raises `RequestError` in the words of the config.
    """

    not_in_identity: ClassVar[frozenset[str]] = frozenset({"workers", "cache", "cache_dir", "valid_images", "preview"})
    not_in_identity_if: ClassVar[Mapping[str, object]] = {"augment": None, "patch_schedule": None}

    def __init_subclass__(cls) -> None:
        """The signature lists what `**options` stands for, for `help()` and for checks of configs."""
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
            above = inspect.signature(cls.__bases__[0]).parameters.values()
            rest = {each.name: each for each in above if each.kind is each.KEYWORD_ONLY}
            own = sorted((rest | {each.name: each for each in own[:-1]}).values(), key=lambda each: each.kind)
        cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]

    def __init__(
        self,
        photographs: Photographs,
        *,
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        cache_dir: str | Path,
        workers: int = 1,
        valid_images: int | None = 10,
        flip: bool = True,
        rotate: bool = True,
        cache: str = "disk",
        degradation: Degradation | str = "bicubic",
        preview: int = 0,
        augment: Mapping[str, float] | None = None,
        patch_schedule: Mapping[int, Mapping[str, int]] | None = None,
    ) -> None:
        self.scale = checks.whole_number("scale", scale, at_least=1)
        self.patch_size = checks.patch_size(patch_size, scale=scale)
        self.batch_size = checks.whole_number("data.batch_size", batch_size, at_least=1, at_most=65536)
        checks.whole_number("data.preview", preview, at_least=0)
        self._seed = checks.whole_number("seed", seed, at_least=0, at_most=2**63 - 1)
        self._workers = checks.whole_number("data.workers", workers, at_least=0, at_most=1024)
        if valid_images is not None:
            checks.whole_number("data.valid_images", valid_images, at_least=0)
        self._valid_images = valid_images
        self._flip, self._rotate = bool(flip), bool(rotate)
        check_choice("data.cache", cache, ("disk", "device"))
        self._resident = cache == "device"
        self._degradation = checks.degradation(degradation)
        self._augment = Augment(augment) if augment else None
        self.phases = checks.phases(patch_schedule, self.patch_size, self.batch_size, scale=scale)
        self._cache = ImageCache(folder_named("data.cache_dir", cache_dir))
        self._photographs = photographs
        self._prepared: _Prepared | None = None

    def prepare(self, progress: bool = True) -> None:
        """Raises `RequestError` for damaged images, images smaller than the patch and pairs whose sizes do not fit."""
        if self._prepared is not None:
            return
        self._photographs.fetch(progress=progress)
        cached = partial(cache_pairs, scale=self.scale, cache=self._cache, progress=progress)
        bicubic = MatlabBicubic(self.scale)
        if self._degradation is None:
            train, valid = cached(self._photographs.train, maker=bicubic), cached(self._wanted_valid, maker=bicubic)
        else:
            self._check_no_lr_images()
            train = cached(self._photographs.train, maker=None)
            valid = cached(self._wanted_valid, maker=Degraded(self._degradation, self.scale))
        for pair in train:
            self._check_covers_patch(pair)
        _warn_of_known(train, valid)
        sizes = np.array([(pair.height, pair.width) for pair in train])
        samplers = {
            patch: Sampler(sizes, lr_patch=patch // self.scale, seed=self._seed, flip=self._flip, rotate=self._rotate)
            for patch in self.patch_sizes
        }
        kind: Callable[[MappedImages, torch.device], Images] = ResidentImages if self._resident else HostImages
        lr = [pair.lr for pair in train if pair.lr is not None]
        self._prepared = _Prepared(
            train,
            LazyPairs([partial(_read, pair, self.scale) for pair in valid]),
            samplers,
            lr=functools.cache(partial(kind, MappedImages(lr, budget=_MAPPED_LR))),
            hr=functools.cache(partial(kind, MappedImages([pair.hr for pair in train], budget=_MAPPED_HR))),
        )

    @property
    def patch_sizes(self) -> frozenset[int]:
        """All that the train step will see, in HR pixels."""
        return frozenset(phase.patch_size for phase in self.phases)

    @property
    def fingerprint(self) -> str:
        """Paths, times, batch size and patch size are no part of it, and validation images are not either."""
        digest = hashlib.sha256(f"x{self.scale} flip={self._flip} rotate={self._rotate}".encode())
        if self._degradation is not None:
            digest.update(self._degradation.identity.encode())
        if self._augment is not None:
            digest.update(f" augment={self._augment.probabilities}".encode())
        for pair in self._ready.train:
            digest.update(f" {pair.hr.digest} {pair.lr.digest if pair.lr else ''}".encode())
        return digest.hexdigest()

    def summary(self) -> dict[str, str | int]:
        """Name, source, scale and numbers of images, for the log and the tracker; works before `prepare`."""
        steps = [type(step).__name__ for step in self._degradation.steps] if self._degradation else []
        return {
            "name": self._photographs.name,
            "source": self._photographs.source,
            **({"degradation": ", ".join(steps)} if steps else {}),
            "scale": self.scale,
            "train_images": len({source.name for source in self._photographs.train}),
            "valid_images": len(self._photographs.valid[: self._valid_images]),
        }

    @property
    def valid(self) -> Sequence[Pair]:
        """The first `valid_images` validation pairs, as views into the cache."""
        return self._ready.valid[: self._valid_images]

    @property
    def valid_all(self) -> Sequence[Pair]:
        """All validation pairs, for the end of training; none where `valid_images` is 0."""
        return self._ready.valid

    def samples(self, first: int, count: int) -> tuple[Pixels, Pixels]:
        """LR (count x p/scale x p/scale x 3) and HR (count x p x p x 3) uint8 of samples first .. first + count - 1."""
        lr, hr = self._samples(torch.device("cpu"), self.patch_size)(first, count)
        return lr.numpy(), hr.numpy()

    def stream(
        self,
        first: int,
        count: int | None = None,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> Loader:
        """See `Data.stream`; `count`: `batch_size`."""
        place = torch.device(device)
        part, parts = share
        for phase in self.phases:
            checks.divisible("data.batch_size", phase.batch_size, parts)
        every = count or self.batch_size
        samples = {patch: self._samples(place, patch) for patch in self.patch_sizes}

        def draw(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
            start = first + batch * every
            phase = [phase for phase in self.phases if phase.after <= start // every][-1]
            size = every * phase.batch_size // self.batch_size // parts
            return samples[phase.patch_size](start + part * size, size)

        batches = FloatBatches(draw, device=place, channels_last=channels_last)
        return Loader(batches, workers=self._workers, finish=batches.finish)

    def _samples(self, device: torch.device, patch: int) -> Samples:
        lr = self._degradation or self._ready.lr(device)
        sampler, hr = self._ready.samplers[patch], self._ready.hr(device)
        return Samples(sampler, lr, hr, patch, self.scale, self._seed, self._augment)

    @property
    def _wanted_valid(self) -> Sequence[PairSource]:
        return () if self._valid_images == 0 else self._photographs.valid

    @property
    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise RuntimeError("prepare() of the data comes first.")
        return self._prepared

    def _check_no_lr_images(self) -> None:
        given = [source.lr for source in (*self._photographs.train, *self._wanted_valid) if source.lr is not None]
        if given:
            raise RequestError(
                f"data.degradation makes the LR images, but there are some already, such as {given[0]}; leave out "
                "data.train_lr and data.valid_lr, or take data.degradation=bicubic."
            )

    def _check_covers_patch(self, pair: CachedPair) -> None:
        smallest = min(pair.height, pair.width) * self.scale
        largest = max(self.patch_sizes)
        if smallest < largest:
            fitting = f"expected data.patch_size={smallest} or less" if smallest else "it is smaller than one LR pixel"
            late = "" if largest == self.patch_size else " (data.patch_schedule)"
            raise RequestError(
                f"{pair.source.hr}: {pair.hr.width} x {pair.hr.height} pixels are less than "
                f"data.patch_size={largest}{late}; {fitting}, or take the image out."
            )


@dataclass(frozen=True)
class _Prepared:
    """A data set whose images are all in the cache; `lr` and `hr` give its training images for a device."""

    train: Sequence[CachedPair]
    valid: Sequence[Pair]
    samplers: Mapping[int, Sampler]
    """By HR patch size."""
    lr: Callable[[torch.device], Images]
    hr: Callable[[torch.device], Images]


def _warn_of_known(train: Sequence[CachedPair], valid: Sequence[CachedPair]) -> None:
    """By content: a copy under another name is the same image."""
    trained = {pair.hr.digest for pair in train}
    known = [pair.name for pair in valid if pair.hr.digest in trained]
    if known:
        more = f" and {len(known) - 3} more" if len(known) > 3 else ""
        logger.warning(
            "%d of the %d validation images are training images too (%s%s): their scores say little about new images",
            *(len(known), len(valid), ", ".join(known[:3]), more),
        )


def _read(pair: CachedPair, scale: int) -> Pair:
    assert pair.lr is not None
    lr = pair.lr.pixels()[: pair.height, : pair.width]
    hr = pair.hr.pixels()[: pair.height * scale, : pair.width * scale]
    return Pair(pair.name, lr, hr)
