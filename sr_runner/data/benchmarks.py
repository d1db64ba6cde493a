"""Benchmark folders as people have them: which HR image, which LR image, at which scale.

Recognised below a folder such as `Set5`, in lower or upper case: HR images in the folder itself, in `HR`, `GTmod12`,
`GT` or `original`; LR images in `LR_bicubic/X4`, `LRbicx4`, `LR/X4` or `LR`; both in `image_SRF_4`; DIV2K's
`DIV2K_valid_HR` and `DIV2K_valid_LR_bicubic/X4` or `DIV2K_valid_LR_x8`. Without LR images they are made from the HR
images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from sr_runner.data.base import LazyPairs, Pair
from sr_runner.data.images import EXTENSIONS, Pixels
from sr_runner.data.scan import image_files, nearest_beside
from sr_runner.data.sources import ImageFile
from sr_runner.errors import RequestError
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
class Benchmark(LazyPairs):
    """The pairs of a benchmark: one image in memory at a time."""

    name: str
    scale: int
    degradation: str = "LR by MATLAB bicubic from HR"
    """Where the LR images come from, for people."""
    bicubic: bool = True
    """Whether the LR images are, as far as their folder shows, made by bicubic, as those of published results are."""


def read_pair(name: str, scale: int, hr: Callable[[], Pixels], lr: Callable[[], Pixels] | None = None) -> Pair:
    """The pair, the HR image cropped to what the LR image covers; without `lr`, that is made by MATLAB's bicubic.

    Raises `RequestError` where their sizes do not fit.
    """
    large = hr()
    height, width = large.shape[0] // scale, large.shape[1] // scale
    if min(height, width) == 0:
        raise RequestError(f"image '{name}' of {large.shape[1]}x{large.shape[0]} pixels is below scale={scale}.")
    if lr is None:
        large = large[: height * scale, : width * scale]
        return Pair(name, imresize_uint8(large, Fraction(1, scale)), large)
    small = lr()
    height, width = min(small.shape[0], height), min(small.shape[1], width)
    if any(abs(a * scale - b) >= scale for a, b in zip(small.shape[:2], large.shape[:2], strict=True)):
        raise RequestError(
            f"image '{name}': an LR image of {small.shape[1]}x{small.shape[0]} pixels does not fit an HR image of "
            f"{large.shape[1]}x{large.shape[0]} at scale={scale}. lr=bicubic makes the LR images from the HR images."
        )
    return Pair(name, small[:height, :width], large[: height * scale, : width * scale])


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
            missing = f"there is no such folder.{nearest_beside(folder)}"
            file = "a file; expected a folder of HR images or of benchmarks."
            raise RequestError(f"data={folder}: {file if folder.exists() else missing}")
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
        hr_folder, images = self._hr_images(folder)
        if not images:
            return None
        name = folder.parent.name if folder.name.upper() == "HR" else folder.resolve().name
        lr_folder = self._lr_folder(folder, hr_folder)
        if lr_folder is None:
            readers = [partial(read_pair, each, self.scale, hr.read) for each, hr in images.items()]
            return Benchmark(readers, name, self.scale)
        lr_images = _images(lr_folder)
        readers = [
            partial(read_pair, each, self.scale, hr.read, _lr_for(hr, lr_images, lr_folder, self.scale).read)
            for each, hr in images.items()
        ]
        bicubic = self.lr is None or "bic" in self.lr.lower()
        return Benchmark(readers, name, self.scale, "LR images of its own", bicubic)

    def _hr_images(self, folder: Path) -> tuple[Path, dict[str, ImageFile]]:
        for pattern in (*_HR_FOLDERS, "."):
            candidate = _subfolder(folder, pattern.format(scale=self.scale))
            if candidate is not None:
                images = {name: image for name, image in _images(candidate).items() if not _LR_NAME.search(name)}
                if images:
                    return candidate, images
        return folder, {}

    def _lr_folder(self, folder: Path, hr_folder: Path) -> Path | None:
        if self.lr == BICUBIC:
            return None
        if self.lr is not None:
            if not Path(self.lr).is_dir():
                raise RequestError(f"lr={self.lr}: there is no such folder; expected a folder or {BICUBIC}.")
            return Path(self.lr)
        roots = [folder, folder.parent] if hr_folder == folder and _HR_NAME.search(folder.name) else [folder]
        for root in roots:
            for pattern in _LR_FOLDERS:
                candidate = _subfolder(root, pattern.format(scale=self.scale))
                # Where the HR images are in the same folder, they differ by their names.
                if candidate and any(candidate != hr_folder or _LR_NAME.search(name) for name in _images(candidate)):
                    return candidate
        return None


def _images(folder: Path) -> dict[str, ImageFile]:
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    return image_files(str(folder), folder, files)


_LR_NAME = re.compile(r"_LR(BI)?(_x\d)?$", re.IGNORECASE)
_HR_NAME = re.compile(r"(^|_)HR(_x\d)?$", re.IGNORECASE)


def _lr_for(hr: ImageFile, lr_images: Mapping[str, ImageFile], lr_folder: Path, scale: int) -> ImageFile:
    """The LR image that the benchmarks' habits of naming give to `hr`."""
    stem = hr.path.stem
    bare = _HR_NAME.sub("", stem)
    for name in (
        f"{stem}x{scale}",
        stem,
        f"{bare}_LR",
        f"{bare}_LRBI_x{scale}",
        f"{bare}x{scale}",
        f"{stem}_x{scale}",
        bare,
    ):
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
