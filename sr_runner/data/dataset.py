"""Pairs in, batches out: what every data set of the runner can do, whatever its images come from."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, Required, TypedDict, overload

import numpy as np
import torch

from sr_runner.data import checks
from sr_runner.data.assemble import assemble
from sr_runner.data.base import Pair
from sr_runner.data.batches import DegradedSamples, FloatBatches, HostSamples, Samples
from sr_runner.data.cache import ImageCache, MappedImages
from sr_runner.data.degradations import Degradation
from sr_runner.data.images import Pixels
from sr_runner.data.loader import Loader
from sr_runner.data.pairs import CachedPair, Degraded, MatlabBicubic, cache_pairs
from sr_runner.data.resident import ResidentImages, ResidentSamples
from sr_runner.data.sampling import Sampler
from sr_runner.data.sources import PairSource
from sr_runner.errors import RequestError

_MAPPED_HR, _MAPPED_LR = 160 * 2**20, 32 * 2**20
"""Bytes of images mapped at a time: with the batches they stay well below 1 GB, however large the data set."""


class PairSources(Protocol):
    """The images of a data set, before anything is decoded."""

    train: Sequence[PairSource]
    valid: Sequence[PairSource]

    def fetch(self, *, progress: bool) -> None:
        """Get what is not on this machine yet; fills `train` and `valid` where they depend on it."""

    def summary(self) -> dict[str, str | int]:
        """What a person should know of where the images come from; has at least `name` and `source`."""


class PairOptions(TypedDict, total=False):
    """The arguments that every data set has; `PairData` tells what they mean."""

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


class PairData:
    """Random crops and whole pairs of images (see `Data`), whatever those come from.

    `patch_size` is in HR pixels. `valid_images` limits validation to the first so many pairs (None: all). `cache_dir`
    holds the decoded images; with `cache="device"` the training images are copied to the device that `stream` is for,
    with `"disk"` they stay where they are. `degradation` makes LR pictures: `"bicubic"` (MATLAB's, of whole images) or
    a `Degradation`, of every crop anew. `preview` is for whoever runs this: how many samples to show instead of
    training. Raises `RequestError` in the words of the config.
    """

    not_in_identity: ClassVar[frozenset[str]] = frozenset({"workers", "cache", "cache_dir", "valid_images", "preview"})

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
        sources: PairSources,
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
    ) -> None:
        self.scale = checks.whole_number("scale", scale, at_least=1)
        self.patch_size = checks.patch_size(patch_size, scale=scale)
        self.batch_size = checks.whole_number("data.batch_size", batch_size, at_least=1)
        checks.whole_number("data.preview", preview, at_least=0)
        self._seed = checks.whole_number("seed", seed, at_least=0)
        self._workers = checks.whole_number("data.workers", workers, at_least=0)
        if valid_images is not None:
            checks.whole_number("data.valid_images", valid_images, at_least=0)
        self._valid_images = valid_images
        self._flip, self._rotate = bool(flip), bool(rotate)
        self._resident = checks.one_of("data.cache", cache, ("disk", "device")) == "device"
        self._degradation = checks.degradation(degradation)
        self._cache = ImageCache(Path(cache_dir).expanduser())
        self._sources = sources
        self._prepared: _Prepared | None = None

    def prepare(self, progress: bool = True) -> None:
        """Raises `RequestError` for damaged images, images smaller than the patch and pairs whose sizes do not fit."""
        if self._prepared is not None:
            return
        self._sources.fetch(progress=progress)
        cached = partial(cache_pairs, scale=self.scale, cache=self._cache, progress=progress)
        bicubic = MatlabBicubic(self.scale)
        if self._degradation is None:
            train, valid = cached(self._sources.train, maker=bicubic), cached(self._wanted_valid, maker=bicubic)
        else:
            self._check_no_lr_images()
            train = cached(self._sources.train, maker=None)
            valid = cached(self._wanted_valid, maker=Degraded(self._degradation, self.scale))
        for pair in train:
            self._check_covers_patch(pair)
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
        """Paths, times, batch size and patch size are no part of it, and validation images are not either."""
        digest = hashlib.sha256(f"x{self.scale} flip={self._flip} rotate={self._rotate}".encode())
        if self._degradation is not None:
            digest.update(self._degradation.identity.encode())
        for pair in self._ready.train:
            digest.update(f" {pair.hr.digest} {pair.lr.digest if pair.lr else ''}".encode())
        return digest.hexdigest()

    def summary(self) -> dict[str, str | int]:
        """Name, source, scale and numbers of images, for the log and the tracker; works before `prepare`."""
        steps = [type(step).__name__ for step in self._degradation.steps] if self._degradation else []
        return {
            **self._sources.summary(),
            **({"degradation": ", ".join(steps)} if steps else {}),
            "scale": self.scale,
            "train_images": len({source.name for source in self._sources.train}),
            "valid_images": len(self._sources.valid[: self._valid_images]),
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
        lr, hr = self._host_samples(torch.device("cpu"))(first, count)
        assert lr is not None
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
        checks.divisible("data.batch_size", self.batch_size, parts)
        pinned = place.type == "cuda"
        samples = self._resident_samples(place) if self._resident else self._host_samples(place, pin_memory=pinned)
        every = count or self.batch_size
        size = every // parts
        batches = FloatBatches(
            samples, first + part * size, size, every=every, device=place, channels_last=channels_last
        )
        return Loader(batches, workers=self._workers, finish=batches.finish)

    def _host_samples(self, device: torch.device, *, pin_memory: bool = False) -> Samples:
        lr_patch = None if self._degradation is not None else self.patch_size // self.scale
        return self._degraded(HostSamples(self._ready.fill, lr_patch, self.patch_size, device, pin_memory))

    def _resident_samples(self, device: torch.device) -> Samples:
        ready = self._ready
        lr, hr = ready.resident(device)
        lr_patch = self.patch_size // self.scale
        return self._degraded(ResidentSamples(ready.sampler.draw, lr, hr, lr_patch, self.patch_size, device))

    def _degraded(self, samples: Samples) -> Samples:
        return DegradedSamples(samples, self._degradation, self.scale, self._seed) if self._degradation else samples

    @property
    def _wanted_valid(self) -> Sequence[PairSource]:
        return () if self._valid_images == 0 else self._sources.valid

    @property
    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise RuntimeError("prepare() of the data comes first.")
        return self._prepared

    def _check_no_lr_images(self) -> None:
        given = [source.lr for source in (*self._sources.train, *self._wanted_valid) if source.lr is not None]
        if given:
            raise RequestError(
                f"data.degradation makes the LR images, but there are some already, such as {given[0]}; leave out "
                "data.train_lr and data.valid_lr, or take data.degradation=bicubic."
            )

    def _check_covers_patch(self, pair: CachedPair) -> None:
        smallest = min(pair.height, pair.width) * self.scale
        if smallest < self.patch_size:
            fitting = f"expected data.patch_size={smallest} or less" if smallest else "it is smaller than one LR pixel"
            raise RequestError(
                f"{pair.source.hr}: {pair.hr.width} x {pair.hr.height} pixels are less than "
                f"data.patch_size={self.patch_size}; {fitting}, or take the image out."
            )


class _Prepared:
    """A data set whose images are all in the cache."""

    def __init__(self, train: list[CachedPair], valid: list[CachedPair], scale: int, sampler: Sampler) -> None:
        self.train = train
        self.valid = _ValidPairs(valid, scale)
        self.sampler = sampler
        self._scale = scale
        self._hr = MappedImages([pair.hr for pair in train], budget=_MAPPED_HR)
        lr = [pair.lr for pair in train if pair.lr is not None]
        self._lr = MappedImages(lr, budget=_MAPPED_LR) if lr else None
        self._resident: dict[torch.device, tuple[ResidentImages | None, ResidentImages]] = {}

    def fill(self, first: int, lr: Pixels | None, hr: Pixels) -> None:
        """Fill the batch `lr`, `hr` with the samples from `first` on."""
        draws = self.sampler.draw(first, len(hr))
        if lr is not None and self._lr is not None:
            assemble(self._lr, draws, lr, factor=1)
        assemble(self._hr, draws, hr, factor=self._scale)

    def resident(self, device: torch.device) -> tuple[ResidentImages | None, ResidentImages]:
        """LR and HR images on `device`, copied there the first time."""
        if device not in self._resident:
            hr = ResidentImages(self._hr, device)
            self._resident[device] = (ResidentImages(self._lr, device) if self._lr else None), hr
        return self._resident[device]


class _ValidPairs(Sequence[Pair]):
    """Validation pairs, mapped anew each time they are looked at: what nobody looks at any more takes no memory."""

    def __init__(self, pairs: Sequence[CachedPair], scale: int) -> None:
        self._pairs, self._scale = pairs, scale

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return _ValidPairs(self._pairs[index], self._scale)
        return _cropped(self._pairs[index], self._scale)


def _cropped(pair: CachedPair, scale: int) -> Pair:
    assert pair.lr is not None
    lr = pair.lr.pixels()[: pair.height, : pair.width]
    hr = pair.hr.pixels()[: pair.height * scale, : pair.width * scale]
    return Pair(pair.name, lr, hr)
