"""Photographs that arrive with scikit-image and scikit-learn: training works without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from sr_runner.data.dataset import PairData, PairOptions
from sr_runner.data.degradations import Degradation
from sr_runner.data.sources import ImageFile, PairSource, Photographs
from sr_runner.errors import RequestError

_TRAIN = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
)
_VALID = ("skimage/data/chelsea.png", "sklearn/datasets/images/flower.jpg")


def sample_photographs() -> Photographs:
    """Five photographs to train on; `chelsea` (a cat) and `flower` are held out. CC0 or CC-BY-2.0."""
    source = "photographs shipped with scikit-image and scikit-learn"
    return Photographs("sample", source, _installed(_TRAIN), _installed(_VALID))


class SampleData(PairData):
    """The sample photographs, with LR images by MATLAB's bicubic; arguments as in `PairData`."""

    def __init__(self, *, degradation: Degradation | str = "bicubic", **options: Unpack[PairOptions]) -> None:
        super().__init__(sample_photographs(), degradation=degradation, **options)


def _installed(names: Sequence[str]) -> list[PairSource]:
    """The files of these names, found without importing their packages, which takes a second."""
    pairs = []
    for name in names:
        package, _, rest = name.partition("/")
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / rest if spec and spec.origin else None
        if path is None or not path.is_file():
            raise RequestError(f"data=sample: {name} is not installed: pip install scikit-image scikit-learn")
        pairs.append(PairSource(path.stem, ImageFile(path)))
    return pairs
