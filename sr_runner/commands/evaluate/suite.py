"""Models on benchmarks: every model on every image, with a progress bar, pictures and further metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from sr_runner.commands.evaluate.models import BICUBIC, Model
from sr_runner.commands.evaluate.published import published
from sr_runner.commands.evaluate.report import Result
from sr_runner.data.benchmarks import Benchmark
from sr_runner.errors import printable
from sr_runner.evaluation.efficiency import Stopwatch, count
from sr_runner.evaluation.metrics import Score, UInt8Image
from sr_runner.evaluation.named import Measure
from sr_runner.evaluation.pictures import Extremes, file_name, sheets
from sr_runner.evaluation.protocol import Pair, evaluate, score_pairs
from sr_runner.files import draft_of
from sr_runner.imresize import imresize_uint8

_WHOLE = 1 << 20
"""LR pixels per tile: more than any image has."""


@dataclass(frozen=True)
class Suite:
    """How models are evaluated."""

    device: torch.device
    tile: int
    overlap: int
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Further metrics by name."""
    pictures: Path | None = None
    """Folder for sheets of the best and the worst images."""
    with_cost: bool = False
    """Measure what the networks cost, on whole images instead of tiles."""

    def run(self, models: Sequence[Model], benchmark: Benchmark) -> Iterator[tuple[Result, list[Path]]]:
        """The result of bicubic, asked for or not, and of each model; and the pictures that were made of it."""
        networks = [model for model in models if model.upscale is not None]
        yield self._one(Model(BICUBIC), benchmark, asked_for=len(networks) < len(models))
        for model in networks:
            yield self._one(model, benchmark, asked_for=True)

    def _one(self, model: Model, benchmark: Benchmark, *, asked_for: bool) -> tuple[Result, list[Path]]:
        extremes = Extremes() if self.pictures is not None and asked_for else None
        cost = watch = None
        if self.with_cost and model.network is not None and model.upscale is not None:
            cost, watch = count(model.network), Stopwatch(model.upscale, model.network, self.device)
        scale, title = benchmark.scale, printable(f"{benchmark.name}, {model.label}")
        with tqdm(total=len(benchmark), desc=title, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:

            def look(pair: Pair, sr: UInt8Image, score: Score) -> None:
                """At each SR image as it comes; no more of it is kept than is needed later."""
                if extremes is not None:
                    extremes.see(pair, sr, score)
                bar.update()

            if model.upscale is None:
                evaluation = score_pairs(
                    benchmark, lambda pair: imresize_uint8(pair.lr, scale), crop=scale, measures=self.measures,
                    on_image=look,
                )  # fmt: skip
            else:
                evaluation = evaluate(
                    watch or model.upscale, benchmark, crop=scale, device=self.device,
                    tile=_WHOLE if watch else self.tile, overlap=self.overlap, grid=model.grid,
                    measures=self.measures, on_image=look,
                )  # fmt: skip
        if cost is not None and watch is not None:
            cost = replace(cost, milliseconds=watch.milliseconds, memory_mib=watch.memory_mib)
        name = BICUBIC if model.upscale is None else model.published_as
        result = Result(
            model=model.label,
            benchmark=benchmark.name,
            scale=scale,
            degradation=benchmark.degradation,
            evaluation=evaluation,
            parameters=model.parameters,
            published=published(name, scale, benchmark.name) if benchmark.bicubic and not self.with_cost else None,
            asked_for=asked_for,
            with_cost=self.with_cost,
            cost=cost,
        )
        return result, self._draw(result, extremes)

    def _draw(self, result: Result, extremes: Extremes | None) -> list[Path]:
        if self.pictures is None or extremes is None:
            return []
        self.pictures.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, sheet in sheets(extremes, scale=result.scale).items():
            paths.append(self.pictures / file_name(result.benchmark, result.model, name))
            with draft_of(paths[-1]) as draft:
                sheet.save(draft, format="PNG")
        return paths
