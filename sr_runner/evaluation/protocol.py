"""A network's SR images of many pairs, scored."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr_runner.errors import RequestError
from sr_runner.evaluation.metrics import METRICS, Score, score
from sr_runner.inference.tiling import OVERLAP, Interrupted, Upscale, iterate_tiles, never, to_bytes, to_unit_range

log = logging.getLogger(__name__)

UInt8Image = npt.NDArray[np.uint8]


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
    seconds: float = 0.0
    """Wall time that the network took, results fetched from the device included."""
    megapixels: float = 0.0
    """Size of all SR images together, in millions of pixels."""

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the images of each metric: `psnr`, `ssim`, `psnr_y`, `ssim_y`."""
        return {name: _mean([getattr(each, name) for each in self.scores]) for name in METRICS}

    @property
    def seconds_per_megapixel(self) -> float:
        """Seconds of the network per million SR pixels."""
        return self.seconds / self.megapixels if self.megapixels else math.nan

    def rows(self) -> list[dict[str, str | float]]:
        """One dictionary per image, with the keys `image`, `psnr`, `ssim`, `psnr_y`, `ssim_y`."""
        return [asdict(each) for each in self.scores]

    def as_csv(self) -> str:
        """One row per image under a header; no mean, so that a spreadsheet can take the column as it is."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def as_json(self) -> str:
        """`{"mean": {...}, "images": [{...}, ...]}`; an infinite PSNR, for which JSON has no number, is "inf"."""
        content = {"mean": finite_or_text(self.mean), "images": [finite_or_text(row) for row in self.rows()]}
        return json.dumps(content, indent=2) + "\n"

    def as_text(self) -> str:
        """The table for people, means in the last row."""
        width = max(len("image"), *(len(each.image) for each in self.scores)) if self.scores else len("image")
        lines = [f"{'image':<{width}}  {'PSNR':>8}  {'SSIM':>7}  {'PSNR-Y':>8}  {'SSIM-Y':>7}"]
        lines += [_text_row(each, width) for each in self.scores]
        if self.scores:
            lines.append(_text_row(Score(image="mean", **self.mean), width))
        return "\n".join(lines) + "\n"


def evaluate(
    upscale: Upscale,
    pairs: Sequence[Pair],
    *,
    crop: int,
    device: torch.device | str,
    tile: int | None = None,
    overlap: int = OVERLAP,
    on_image: OnImage | None = None,
    should_stop: Callable[[], bool] = never,
) -> Evaluation:
    """Score `upscale` on `pairs`: PSNR and SSIM of its rounded output, `crop` pixels left out on each side.

    `upscale` gets one LR image at a time, 1 x 3 x h x w in [0, 1] on `device`, and gives 1 x 3 x H x W; where `tile` is
    given, one tile of it as in `upscale_tiled`, and no float of more than a tile is held. Modes (`eval()`, autocast,
    EMA weights) are the caller's; gradients are off. Images are scored on other threads while the network works on the
    next.

    Raises `Interrupted` between images once `should_stop()` is true (tiles inside `upscale` may raise it as well),
    `RequestError` where the network's output is not of the size of the HR image.
    """
    scores: list[Score] = []
    seconds, pixels, not_numbers = 0.0, 0, 0
    workers = max(1, min(4, (os.cpu_count() or 1) - 1))
    waiting: deque[tuple[Pair, UInt8Image, Future[Score]]] = deque()

    def collect(at_most: int) -> None:
        while len(waiting) > at_most:
            pair, sr_image, future = waiting.popleft()
            scores.append(future.result())
            if on_image is not None:
                on_image(pair, sr_image, scores[-1])

    with torch.no_grad(), ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        for pair in pairs:
            if should_stop():
                raise Interrupted
            start = time.perf_counter()
            sr_image, has_nan = _upscaled(upscale, pair, device, tile, overlap, should_stop)
            not_numbers += has_nan
            seconds += time.perf_counter() - start
            pixels += sr_image.shape[0] * sr_image.shape[1]
            waiting.append((pair, sr_image, pool.submit(score, pair.name, sr_image, pair.hr, crop=crop)))
            collect(workers)
        collect(0)
    if not_numbers:
        log.warning("The network gave NaN on %d of %d images; such pixels count as black.", not_numbers, len(scores))
    return Evaluation(scores, seconds=seconds, megapixels=pixels / 1e6)


def evaluate_images(
    pairs: Iterable[Pair],
    enlarge: Callable[[UInt8Image], UInt8Image],
    *,
    crop: int,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Score something that is no network, such as bicubic: `enlarge` maps an LR image to an SR image, both uint8."""
    scores: list[Score] = []
    seconds, pixels = 0.0, 0
    for pair in pairs:
        start = time.perf_counter()
        sr = enlarge(pair.lr)
        seconds += time.perf_counter() - start
        pixels += sr.shape[0] * sr.shape[1]
        scores.append(score(pair.name, sr, pair.hr, crop=crop))
        if on_image is not None:
            on_image(pair, sr, scores[-1])
    return Evaluation(scores, seconds=seconds, megapixels=pixels / 1e6)


def finite_or_text(row: dict[str, str | float] | dict[str, float]) -> dict[str, str | float]:
    """The row with infinities and NaN as text, for JSON."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _upscaled(
    upscale: Upscale,
    pair: Pair,
    device: torch.device | str,
    tile: int | None,
    overlap: int,
    should_stop: Callable[[], bool],
) -> tuple[UInt8Image, bool]:
    """The SR image of `pair`, and whether the network gave NaN anywhere."""
    lr = to_unit_range(pair.lr, device)
    if tile is None:
        sr = upscale(lr)
        _check_size(pair, sr)
        return to_bytes(sr), bool(sr.isnan().any())
    image, has_nan = np.empty(pair.hr.shape, np.uint8), False
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    for rows, columns, part in iterate_tiles(
        upscale, lr, scale=scale, tile=tile, overlap=overlap, should_stop=should_stop
    ):
        has_nan |= bool(part.isnan().any())
        image[rows, columns] = to_bytes(part)
    return image, has_nan


def _check_size(pair: Pair, sr: Tensor) -> None:
    height, width = pair.hr.shape[:2]
    if tuple(sr.shape) != (1, 3, height, width):
        raise RequestError(
            f"image '{pair.name}': of an LR image of {pair.lr.shape[:2]} the network made {tuple(sr.shape)}, but the "
            f"HR image asks for {(1, 3, height, width)}. The scale of the network must be that of the data."
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _text_row(row: Score, width: int) -> str:
    return f"{row.image:<{width}}  {row.psnr:8.3f}  {row.ssim:7.4f}  {row.psnr_y:8.3f}  {row.ssim_y:7.4f}"
