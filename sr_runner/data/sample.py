"""Photographs that arrive with scikit-image and scikit-learn: training works without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from sr_runner.data.dataset import PairData, PairOptions
from sr_runner.data.degradations import Degradation
from sr_runner.data.sources import ImageFile, PairSource, Photographs
from sr_runner.errors import RequestError

_TRAIN = {
    "skimage": ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("china.jpg",),
}
_VALID = {"skimage": ("chelsea.png",), "sklearn": ("flower.jpg",)}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def sample_photographs() -> Photographs:
    """Five photographs to train on; `chelsea` (a cat) and `flower` are held out. CC0 or CC-BY-2.0."""
    source = "photographs shipped with scikit-image and scikit-learn"
    return Photographs("sample", source, _installed(_TRAIN), _installed(_VALID))


class SampleData(PairData):
    """The sample photographs, with LR images by MATLAB's bicubic; arguments as in `PairData`."""

    def __init__(self, *, degradation: Degradation | str = "bicubic", **options: Unpack[PairOptions]) -> None:
        super().__init__(sample_photographs(), degradation=degradation, **options)


def _installed(names: Mapping[str, Sequence[str]]) -> list[PairSource]:
    paths = [_folder(package) / name for package, files in names.items() for name in files]
    for path in paths:
        if not path.is_file():
            raise RequestError(f"data=sample: {path} is missing; reinstall scikit-image and scikit-learn.")
    return [PairSource(path.stem, ImageFile(path)) for path in paths]


def _folder(package: str) -> Path:
    """Where a package keeps its photographs; found without importing it, which takes a second."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = _DISTRIBUTIONS[package]
        raise RequestError(f"data=sample needs the photographs of {name}: pip install {name}")
    return Path(spec.origin).parent / _FOLDERS[package]
