"""Own photographs: folders, globs and databases of HR images, with or without LR images."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Unpack

from sr_runner.data import checks, names
from sr_runner.data.dataset import PairData, PairOptions
from sr_runner.data.degradations import Degradation
from sr_runner.data.names import Ranges
from sr_runner.data.scan import find_images
from sr_runner.data.sources import PairSource, Photographs
from sr_runner.errors import RequestError, nearest

logger = logging.getLogger(__name__)

Where = str | Path | int | Mapping[str, object]
"""A place of images (an int where a folder is called `2024`), or a mapping with the fields of `Root`."""


@dataclass(frozen=True)
class Root:
    """One place that images come from."""

    path: str | Path
    """Folder, glob, image file or LMDB database of HR images."""

    lr: str | Path | None = None
    """The same for their LR images; None: made from the HR images."""

    repeat: int = 1
    """How often each of its training images comes in an epoch."""

    subset: Ranges | None = None
    """Which of its images, counted from 1 in alphabetical order: `"1-100,150"`; None: all."""


@dataclass(frozen=True)
class _Split:
    """How images are to be found and split, apart from where they are."""

    scale: int
    hr_pattern: str
    lr_patterns: Sequence[str] | None
    valid_fraction: float
    valid_list: str | Path | Sequence[str] | None


class FolderData(PairData):
    """Own images; other arguments as in `PairData`.

    `train` and `valid` say where HR images are: a folder (searched with the folders in it), a glob, an LMDB database as
    BasicSR makes them, or a list of those. Entries of a list may be mappings with `path`, `lr`, `repeat` and `subset`
    (see `Root`). `train_lr` and `valid_lr` are the places of LR images, one for each of HR images; where they are
    absent, LR images are made by MATLAB's bicubic. An LR image is called as its HR image, `{name}`, or
    `{name}x{scale}`; `hr_pattern` and `lr_pattern` say otherwise, and with only an `lr_pattern`, LR images lie among
    the HR images.

    Without `valid`, validation images are held out of `train`: those in `valid_list` (names, or a file of names, one a
    line), else the share `valid_fraction`, at least one image (none where it is 0); which ones depends on their names
    only.
    """

    # Where images are and what they are called; which images they are is in the fingerprint.
    not_in_identity = PairData.not_in_identity | {
        "train", "train_lr", "valid", "valid_lr", "valid_fraction", "valid_list", "hr_pattern", "lr_pattern",
    }  # fmt: skip

    def __init__(
        self,
        *,
        train: Where | Sequence[Where] | None = None,
        train_lr: str | Path | Sequence[str | Path] | None = None,
        valid: Where | Sequence[Where] | None = None,
        valid_lr: str | Path | Sequence[str | Path] | None = None,
        valid_fraction: float = 0.1,
        valid_list: str | Path | Sequence[str] | None = None,
        hr_pattern: str = "{name}",
        lr_pattern: str | Sequence[str] | None = None,
        degradation: Degradation | str = "bicubic",
        **options: Unpack[PairOptions],
    ) -> None:
        if not train:
            raise RequestError(f"data.train={train}: expected a folder of HR images, data.train=/path/to/photographs")
        split = _Split(
            scale=checks.whole_number("scale", options["scale"], at_least=1),
            hr_pattern=names.patterns("data.hr_pattern", hr_pattern)[0],
            lr_patterns=None if lr_pattern is None else names.patterns("data.lr_pattern", lr_pattern),
            valid_fraction=checks.fraction("data.valid_fraction", valid_fraction),
            valid_list=valid_list,
        )
        train_roots, valid_roots = _roots("data.train", train, train_lr), _roots("data.valid", valid, valid_lr)
        super().__init__(_photographs(train_roots, valid_roots, split), degradation=degradation, **options)


def _roots(key: str, where: Where | Sequence[Where] | None, lr: str | Path | Sequence[str | Path] | None) -> list[Root]:
    places = [where] if isinstance(where, str | Path | int | Mapping) else list(where or ())
    lr_places: list[str | Path | None] = [lr] if isinstance(lr, str | Path) else list(lr or ())
    if lr_places and len(lr_places) != len(places):
        raise RequestError(
            f"{key}_lr: {len(lr_places)} places of LR images for {len(places)} of HR images in {key}; give one each."
        )
    return [_root(key, place, lr) for place, lr in zip(places, lr_places or [None] * len(places), strict=True)]


def _root(key: str, where: Where, lr: str | Path | None) -> Root:
    if not isinstance(where, Mapping):
        return Root(str(where), lr)
    known = [field.name for field in fields(Root)]
    for name in where:
        if name not in known:
            raise RequestError(f"{key}: an entry has {', '.join(known)}, not {name!r}.{nearest(str(name), known)}")
    if not where.get("path"):
        raise RequestError(f"{key}: the entry {dict(where)!r} has no path: expected path=FOLDER.")
    root = Root(**{"lr": lr, **where})  # type: ignore[arg-type]
    checks.whole_number(f"{key}.repeat", root.repeat, at_least=1)
    return root


def _photographs(train: Sequence[Root], valid: Sequence[Root], split: _Split) -> Photographs:
    paths = [Path(root.path).expanduser() for root in train]
    name = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    source = ", ".join(str(path.absolute()) for path in paths)
    pairs = _pairs("data.train", train, split)
    if valid:
        if split.valid_list is not None:
            raise RequestError("data.valid_list takes images out of data.train; give it or data.valid, not both.")
        return Photographs(name, source, pairs, _pairs("data.valid", valid, split))
    chosen = _held_out(pairs, split)
    held_out = {pair.name: pair for pair in pairs if pair.name in chosen}
    return Photographs(name, source, [pair for pair in pairs if pair.name not in chosen], list(held_out.values()))


def _pairs(key: str, roots: Sequence[Root], split: _Split) -> list[PairSource]:
    """The pairs of all places, each as often as its place is to be repeated; names are made unique."""
    found = [_pairs_of(key, root, split) for root in roots]
    labels = _labels(roots)
    return [
        replace(pair, name=f"{label}{pair.name}")
        for root, label, pairs in zip(roots, labels, found, strict=True)
        for pair in pairs
        for _ in range(root.repeat)
    ]


def _labels(roots: Sequence[Root]) -> list[str]:
    """What to put before the names of each place's images: nothing, the folder's name, or its path where needed."""
    if len(roots) == 1:
        return [""]
    paths = [Path(root.path).expanduser() for root in roots]
    short = [path.name for path in paths]
    return [f"{path.name if short.count(path.name) == 1 else path.as_posix()}/" for path in paths]


def _pairs_of(key: str, root: Root, split: _Split) -> list[PairSource]:
    images = find_images(key, root.path)
    hr = names.by_name(images, split.hr_pattern, split.scale)
    if not hr:
        raise RequestError(f"data.hr_pattern={split.hr_pattern!r}: fits no image in {key}={str(root.path)!r}.")
    wanted = sorted(hr)
    if root.subset is not None:
        wanted = [wanted[n - 1] for n in names.numbers(f"{key}.subset", root.subset, len(wanted))]
    if root.lr is None and split.lr_patterns is None:
        return [PairSource(name, images[hr[name]]) for name in wanted]
    lr_images = images if root.lr is None else find_images(f"{key}_lr", root.lr)
    patterns = split.lr_patterns or names.LR_PATTERNS
    found = names.match_lr(wanted, lr_images, patterns, split.scale)
    if missing := [name for name, lr in found.items() if lr is None]:
        more = f" and for {len(missing) - 1} more" if len(missing) > 1 else ""
        tried = " or ".join(pattern.format(name=missing[0], scale=split.scale) for pattern in patterns)
        raise RequestError(
            f"{key}_lr={str(root.lr or root.path)!r}: no LR image for {images[hr[missing[0]]]}{more}; "
            f"it should be called {tried}."
        )
    if root.lr is not None and root.subset is None and (unused := sorted(set(lr_images) - set(found.values()))):
        logger.info(
            "%s_lr=%s: %d of %d images belong to no HR image and are left out, %s for one.",
            *(key, root.lr, len(unused), len(lr_images), unused[0]),
        )
    return [PairSource(name, images[hr[name]], lr_images[lr]) for name, lr in found.items() if lr is not None]


def _held_out(pairs: Sequence[PairSource], split: _Split) -> set[str]:
    """Names of validation pairs: listed, or by a hash of the names, so that adding images moves few of the others."""
    present = {pair.name: pair for pair in pairs}
    if split.valid_list is not None:
        chosen = names.listed("data.valid_list", split.valid_list, present)
    else:
        count = math.ceil(split.valid_fraction * len(present))
        chosen = set(sorted(present, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:count])
        if 0 < count < len(present):
            logger.info(
                "No data.valid: %d of the %d images in data.train are held out (data.valid_fraction=%g).",
                *(count, len(present), split.valid_fraction),
            )
    if len(chosen) == len(present):
        raise RequestError(
            f"data.train: all of its images ({len(present)}) would be held out for validation, and none left to train "
            "on; give data.valid, a folder of HR images, or data.valid_fraction=0 to train without validation."
        )
    return chosen
