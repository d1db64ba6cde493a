"""Benchmark folders as people have them: which HR image, which LR image, at which scale.

Recognised below a folder such as `Set5`, in lower or upper case: HR images in the folder itself, in `HR`, `GTmod12`,
`GT` or `original`; LR images in `LR_bicubic/X4`, `LRbicx4`, `LR/X4` or `LR`; both in `image_SRF_4`; DIV2K's
`DIV2K_valid_HR` and `DIV2K_valid_LR_bicubic/X4` or `DIV2K_valid_LR_x8`. Without LR images they are made from the HR
images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import overload

from sr_runner.data.base import Pair
from sr_runner.data.images import EXTENSIONS, Pixels, read_image
from sr_runner.errors import RequestError, nearest
from sr_runner.imresize import imresize_uint8

BICUBIC = "bicubic"
"""`lr=bicubic`: make the LR images even where the folder has some."""

_HR_FOLDERS = ("HR", "HR/x{scale}", "GTmod12", "GTmod{scale}", "GT", "original", "image_SRF_{scale}", "DIV2K_valid_HR")
_LR_FOLDERS = (
    "LR_bicubic/X{scale}",
    "LR_bicubic_X{scale}",
    "LRbicx{scale}",
    "LR/X{scale}",
    "LR",
    "image_SRF_{scale}",
    "DIV2K_valid_LR_bicubic/X{scale}",
    "DIV2K_valid_LR_x{scale}",
)


@dataclass(frozen=True)
class PairReader:
    """A pair that is still on disk; without `lr`, it is made from the HR image by MATLAB's bicubic."""

    name: str
    hr: Callable[[], Pixels]
    lr: Callable[[], Pixels] | None = None

    def read(self, scale: int) -> Pair:
        """The pair, the HR image cropped to what the LR image covers. Raises `RequestError` where they do not fit."""
        hr = self.hr()
        height, width = hr.shape[0] // scale, hr.shape[1] // scale
        if min(height, width) == 0:
            raise RequestError(f"image '{self.name}' of {hr.shape[1]}x{hr.shape[0]} pixels is below scale={scale}.")
        if self.lr is None:
            hr = hr[: height * scale, : width * scale]
            return Pair(self.name, imresize_uint8(hr, Fraction(1, scale)), hr)
        lr = self.lr()
        height, width = min(lr.shape[0], height), min(lr.shape[1], width)
        if abs(lr.shape[0] * scale - hr.shape[0]) >= scale or abs(lr.shape[1] * scale - hr.shape[1]) >= scale:
            raise RequestError(
                f"image '{self.name}': an LR image of {lr.shape[1]}x{lr.shape[0]} pixels does not fit an HR image of "
                f"{hr.shape[1]}x{hr.shape[0]} at scale={scale}. lr=bicubic makes the LR images from the HR images."
            )
        return Pair(self.name, lr[:height, :width], hr[: height * scale, : width * scale])


@dataclass(frozen=True)
class Benchmark(Sequence[Pair]):
    """The pairs of a benchmark, read from disk each time they are looked at: one image in memory at a time."""

    name: str
    scale: int
    readers: tuple[PairReader, ...]
    bicubic: bool = True
    """Whether the LR images are, as far as their folder shows, made by bicubic, as those of published results are."""

    @property
    def degradation(self) -> str:
        """Where the LR images come from, for people."""
        made = all(reader.lr is None for reader in self.readers)
        return "LR by MATLAB bicubic from HR" if made else "LR images of its own"

    def __len__(self) -> int:
        return len(self.readers)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return replace(self, readers=self.readers[index])
        return self.readers[index].read(self.scale)


@dataclass(frozen=True)
class Finder:
    """Finds benchmarks in folders."""

    scale: int
    lr: str | None = None
    """A folder of LR images to take instead, `bicubic` to make them, None for what the layout has."""

    def find(self, folder: Path) -> list[Benchmark]:
        """The benchmark in `folder`, or the benchmarks in its sub-folders.

        Raises `RequestError` where there is no such folder, no image, or no LR image for one of the HR images.
        """
        if not folder.is_dir():
            raise RequestError(f"data={folder}: {self._missing(folder)}")
        found = self._benchmark(folder)
        if found is not None:
            return [found]
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        several = [each for child in children if (each := self._benchmark(child)) is not None]
        if not several:
            raise RequestError(
                f"data={folder}: neither images ({' '.join(EXTENSIONS)}) nor a benchmark (HR/, GTmod12/, "
                f"image_SRF_{self.scale}/, ...) in this folder or one below it."
            )
        return several

    def _benchmark(self, folder: Path) -> Benchmark | None:
        hr_folder, images = next(self._hr_folders(folder), (folder, {}))
        if not images:
            return None
        lr_folder = self._lr_folder(folder, hr_folder)
        lr_images = {} if lr_folder is None else self._images(lr_folder)
        readers = []
        for name, path in images.items():
            lr = None if lr_folder is None else partial(read_image, _lr_for(path, lr_images, lr_folder, self.scale))
            readers.append(PairReader(name, partial(read_image, path), lr))
        name = folder.parent.name if folder.name.upper() == "HR" else folder.resolve().name
        return Benchmark(name, self.scale, tuple(readers), bicubic=self.lr is None or "bic" in self.lr.lower())

    def _hr_folders(self, folder: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
        for pattern in (*_HR_FOLDERS, "."):
            candidate = _subfolder(folder, pattern.format(scale=self.scale))
            if candidate is not None:
                images = {name: path for name, path in self._images(candidate).items() if not _LR_NAME.search(name)}
                if images:
                    yield candidate, images

    def _lr_folder(self, folder: Path, hr_folder: Path) -> Path | None:
        if self.lr == BICUBIC:
            return None
        if self.lr is not None:
            if not Path(self.lr).is_dir():
                raise RequestError(f"lr={self.lr}: there is no such folder; a folder or {BICUBIC} is needed.")
            return Path(self.lr)
        roots = [folder, folder.parent] if hr_folder == folder and _HR_NAME.search(folder.name) else [folder]
        for root in roots:
            for pattern in _LR_FOLDERS:
                candidate = _subfolder(root, pattern.format(scale=self.scale))
                if candidate is not None and self._has_lr(candidate, hr_folder):
                    return candidate
        return None

    def _has_lr(self, folder: Path, hr_folder: Path) -> bool:
        """Whether LR images are in `folder`; where it has the HR images too, their names tell them apart."""
        return any(folder != hr_folder or _LR_NAME.search(name) for name in self._images(folder))

    def _images(self, folder: Path) -> dict[str, Path]:
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS]
        images: dict[str, Path] = {}
        for path in (path for path in paths if not path.name.startswith(".") and path.is_file()):
            if path.stem in images:
                raise RequestError(f"{folder}: {images[path.stem].name} and {path.name} have the same name.")
            images[path.stem] = path
        return images

    def _missing(self, folder: Path) -> str:
        if folder.exists():
            return "a file; a folder of HR images or of benchmarks is needed."
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        return f"there is no such folder.{nearest(folder.name, beside)}"


_LR_NAME = re.compile(r"_LR(BI)?(_x\d)?$", re.IGNORECASE)
_HR_NAME = re.compile(r"(^|_)HR(_x\d)?$", re.IGNORECASE)


def _lr_for(hr: Path, lr_images: dict[str, Path], lr_folder: Path, scale: int) -> Path:
    """The LR image that the benchmarks' habits of naming give to `hr`."""
    stem = hr.stem
    bare = _HR_NAME.sub("", stem)
    names = [
        f"{stem}x{scale}",
        stem,
        f"{bare}_LR",
        f"{bare}_LRBI_x{scale}",
        f"{bare}x{scale}",
        f"{stem}_x{scale}",
        bare,
    ]
    for name in names:
        if name in lr_images and lr_images[name] != hr:
            return lr_images[name]
    raise RequestError(
        f"no LR image for {hr} in {lr_folder}: it should be called {stem}x{scale} or {stem}. "
        "lr=bicubic makes the LR images from the HR images."
    )


def _subfolder(root: Path, relative: str) -> Path | None:
    """`root / relative`, in whatever case it is written."""
    for part in Path(relative).parts:
        match = [child for child in root.iterdir() if child.name.lower() == part.lower() and child.is_dir()]
        if not match:
            return None
        root = match[0]
    return root
