"""A network's SR images of many pairs, scored."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from sr_runner.evaluation.metrics import METRICS, Score, UInt8Image, score
from sr_runner.evaluation.named import Measure
from sr_runner.inference import OVERLAP, TILE
from sr_runner.inference.tiling import Interrupted, Upscale, never, upscale_image

log = logging.getLogger(__name__)


class Pair(Protocol):
    """An LR image and the HR image it stands for, uint8 HWC RGB."""

    @property
    def name(self) -> str: ...
    @property
    def lr(self) -> UInt8Image: ...
    @property
    def hr(self) -> UInt8Image: ...


OnImage = Callable[[Pair, UInt8Image, Score], None]
"""Called with a pair, its SR image and the score, in the order of the pairs, from the thread that evaluates."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of images, in its order."""

    scores: list[Score]
    seconds_per_megapixel: float = math.nan
    """Wall time of the network per million SR pixels, results fetched from the device included."""

    @property
    def metrics(self) -> list[str]:
        """`psnr`, `ssim`, `psnr_y`, `ssim_y` and what else was measured."""
        return [*METRICS, *(self.scores[0].others if self.scores else ())]

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the images of each of `metrics`."""
        return {name: _mean([each.values[name] for each in self.scores]) for name in self.metrics}

    def rows(self) -> list[dict[str, str | float]]:
        """One dictionary per image, with the keys `image` and `metrics`."""
        return [{"image": each.image} | each.values for each in self.scores]

    def as_csv(self) -> str:
        """One row per image under a header; no mean, so that a spreadsheet can take the column as it is."""
        return as_csv(self.rows(), ["image", *self.metrics])


def evaluate(
    upscale: Upscale,
    pairs: Iterable[Pair],
    *,
    crop: int,
    device: torch.device | str,
    tile: int = TILE,
    overlap: int = OVERLAP,
    grid: int = 1,
    measures: Mapping[str, Measure] = MappingProxyType({}),
    on_image: OnImage | None = None,
    should_stop: Callable[[], bool] = never,
) -> Evaluation:
    """Score `upscale` on `pairs`: PSNR and SSIM of its rounded output, `crop` pixels left out on each side, and what
    the further metrics `measures` make of it.

    `upscale` gets one tile of one LR image at a time, as in `upscale_image`: 1 x 3 x h x w in [0, 1] on `device`. Modes
    (`eval()`, autocast, EMA weights) are the caller's; gradients are off. PSNR and SSIM are computed on other threads
    while the network works on the next image.

    Raises `Interrupted` between images and tiles once `should_stop()` is true, `RequestError` where the network's scale
    is not that of the pairs.
    """
    with_nan: set[str] = set()

    def enlarge(pair: Pair) -> UInt8Image:
        def watched(lr: Tensor) -> Tensor:
            sr = upscale(lr)
            if sr.isnan().any():
                with_nan.add(pair.name)
            return sr

        scale = pair.hr.shape[0] // pair.lr.shape[0]
        return upscale_image(
            watched, pair.lr, scale=scale, device=device, tile=tile, overlap=overlap, grid=grid,
            should_stop=should_stop,
        )  # fmt: skip

    with torch.no_grad():
        evaluation = score_pairs(
            pairs, enlarge, crop=crop, measures=measures, on_image=on_image, should_stop=should_stop
        )
    if with_nan:
        log.warning(
            "The network gave NaN on %d of %d images; such pixels count as black.",
            len(with_nan),
            len(evaluation.scores),
        )
    return evaluation


def score_pairs(
    pairs: Iterable[Pair],
    enlarge: Callable[[Pair], UInt8Image],
    *,
    crop: int,
    measures: Mapping[str, Measure] = MappingProxyType({}),
    on_image: OnImage | None = None,
    should_stop: Callable[[], bool] = never,
) -> Evaluation:
    """`evaluate` for what is no network, such as bicubic: `enlarge` gives the SR image of a pair, uint8 HWC RGB."""
    scores: list[Score] = []
    seconds, pixels = 0.0, 0
    workers = max(1, min(4, (os.cpu_count() or 1) - 1))
    waiting: deque[tuple[Pair, UInt8Image, Future[Score]]] = deque()

    def collect(at_most: int) -> None:
        while len(waiting) > at_most:
            pair, sr, future = waiting.popleft()
            result = future.result()
            if measures:
                if should_stop():
                    raise Interrupted
                result = replace(result, others={name: measure(sr, pair.hr) for name, measure in measures.items()})
            scores.append(result)
            if on_image is not None:
                on_image(pair, sr, scores[-1])

    with ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        for pair in pairs:
            if should_stop():
                raise Interrupted
            start = time.perf_counter()
            sr = enlarge(pair)
            seconds += time.perf_counter() - start
            pixels += sr.shape[0] * sr.shape[1]
            waiting.append((pair, sr, pool.submit(score, pair.name, sr, pair.hr, crop=crop)))
            collect(workers)
        collect(0)
    return Evaluation(scores, seconds / pixels * 1e6 if pixels else math.nan)


def as_csv(rows: Iterable[Mapping[str, str | float]], columns: Sequence[str]) -> str:
    """The rows under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def finite_or_text(row: dict[str, str | float] | dict[str, float]) -> dict[str, str | float]:
    """The row with infinities and NaN as text, for JSON."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
