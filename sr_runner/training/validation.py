"""Validation: the scores on the way and at the end, the best of them, and the pictures that go with them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import nn

from sr_runner.checkpoint.format import step_name
from sr_runner.checkpoint.state import Rows
from sr_runner.data import Data, Pair
from sr_runner.distributed.world import World
from sr_runner.evaluation.metrics import Score, digits, title
from sr_runner.evaluation.named import Measure, lower_is_better
from sr_runner.evaluation.protocol import Evaluation, OnImage, evaluate, score_pairs
from sr_runner.evaluation.protocol import Pair as ScoredPair
from sr_runner.evaluation.strip import picture_strip
from sr_runner.files import draft_of, own_folder
from sr_runner.imresize import imresize_uint8
from sr_runner.inference import TILE
from sr_runner.inference.tiling import Interrupted
from sr_runner.models.padding import grid_of
from sr_runner.tracking import Tracker

log = logging.getLogger(__name__)


_bicubic: dict[tuple[object, ...], Score] = {}
"""By name and content of a pair: it is the same at the end of training as on the way, and for all jobs of a sweep."""


def _key(pair: Pair) -> tuple[str, bytes]:
    digest = hashlib.sha256(f"{pair.lr.shape} {pair.hr.shape} ".encode())
    for image in (pair.lr, pair.hr):
        digest.update(np.ascontiguousarray(image).data)
    return pair.name, digest.digest()


@dataclass(frozen=True)
class Scored:
    """One evaluation, image by image."""

    step: int = 0
    """0: there was none."""
    scores: tuple[Score, ...] = ()
    bicubic: tuple[Score, ...] = ()
    """The same images enlarged by MATLAB bicubic."""

    def metrics(self, prefix: str, names: Sequence[str]) -> dict[str, float]:
        """The means of the metrics `names`, `<prefix>/psnr` and so on; empty without images."""
        means = Evaluation(list(self.scores)).mean if self.scores else {}
        return {f"{prefix}/{name}": means[name] for name in names if name in means}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain data."""
        rows = {name: [dataclasses.asdict(score) for score in getattr(self, name)] for name in ("scores", "bicubic")}
        return {"step": self.step} | rows

    @classmethod
    def of(cls, step: int = 0, scores: Rows = (), bicubic: Rows = ()) -> Scored:
        """The inverse of `state`."""
        return cls(step, tuple(Score(**row) for row in scores), tuple(Score(**row) for row in bicubic))


class Validation:
    """Scores the validation images and records what came of it. Only the main process scores; see `broadcast`."""

    def __init__(
        self,
        data: Data,
        tracker: Tracker,
        *,
        device: torch.device,
        last_step: int,
        pictures: int,
        metrics: Sequence[str],
        measures: Mapping[str, Measure],
        best_metric: str,
        should_stop: Callable[[], bool],
    ):
        """`last_step` is the end of training, where all images are scored; `pictures` is the number of images whose
        strips (bicubic | SR | HR) are drawn at each evaluation. `metrics` are recorded; of them `measures` are computed
        beside PSNR and SSIM, and `valid/<one of them>` is the `best_metric`. `should_stop` cuts an evaluation short."""
        self._data, self._tracker, self._device = data, tracker, device
        self._last_step, self._should_stop = last_step, should_stop
        self._pictures, self._folder = pictures, Path()
        self._names, self._measures, self._best_metric = metrics, measures, best_metric
        self._best_name = best_metric.removeprefix("valid/")
        self._sign = -1.0 if lower_is_better(self._best_name, "checkpoint.best_metric") else 1.0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="pictures")  # they are drawn beside the training
        self._drawing: list[Future[None]] = []
        self.last = Scored()
        self.final = Scored()
        """The evaluation on all images at the end of training, where those on the way have fewer."""
        self.best: dict[str, float] = {}
        """The evaluation of the best `best_metric`, with its `step`; empty before the first."""

    @property
    def metrics(self) -> dict[str, float]:
        """The means of the last evaluation, `valid/psnr` and so on; empty before the first."""
        return self.last.metrics("valid", self._names)

    @property
    def final_metrics(self) -> dict[str, float]:
        """The means of the evaluation on all images, `final/psnr` and so on."""
        return self.final.metrics("final", self._names)

    @property
    def version(self) -> tuple[int, int]:
        """Differs where a checkpoint would."""
        return self.last.step, self.final.step

    def is_lacking(self, step: int) -> bool:
        """Whether the images of the evaluations, or at the end of training all of them, are still to be scored."""
        at_end = step == self._last_step and len(self._data.valid_all) > len(self._data.valid)
        return self.last.step != step or (at_end and self.final.step != step)

    def begin(self, run_dir: Path, first: int | None = None) -> None:
        """Pictures go into `run_dir` from now on. `first` is the step at which a record that is empty begins."""
        self._folder = run_dir / "pictures"
        if first is not None and len(self._data.valid):
            # A comparison in MLflow shows the metric that its runs got first.
            self._tracker.log(first, {f"best/{self._best_name}": math.nan})

    def run(self, step: int, network: nn.Module) -> Evaluation | None:
        """Score `network`; None where a signal cut it short, or where there are no validation images."""
        pairs = self._data.valid
        if not len(pairs):
            self.last = Scored(step)
            return None
        began = time.perf_counter()
        drawn = {pair.name for pair in pairs[: self._pictures]}
        strips: list[Callable[[], None]] = []

        def keep(pair: ScoredPair, sr: np.ndarray, score: Score) -> None:
            if pair.name in drawn:
                strips.append(partial(self._draw, step, pair, sr))

        evaluation = self._score(network, pairs, keep)
        if evaluation is None:
            return None
        known = self.last.bicubic
        is_known = len(known) == len(pairs) and all(self._measures.keys() <= score.others.keys() for score in known)
        bicubic = known if is_known else self._score_bicubic(pairs)
        self.last = Scored(step, tuple(evaluation.scores), bicubic)
        metrics = self._record("step %d", self.last, "valid", began)
        self._drawing += [self._background.submit(strip) for strip in strips]
        key, worst = self._best_metric, -self._sign * math.inf
        if self._sign * metrics[key] > self._sign * self.best.get(key, worst):
            self.best = metrics | {"step": float(step)}
        if key in self.best:  # what is no number is no best one
            self._tracker.log(step, self._best())
        if self.is_lacking(step):
            self._score_all(step, network)
        return evaluation

    def broadcast(self, world: World) -> None:
        """What the main process has scored becomes known to its peers."""
        self.restore(**world.broadcast(self.state()))

    def flush(self) -> None:
        """Wait until the pictures of all evaluations so far are recorded."""
        while self._drawing:
            self._drawing.pop(0).result()

    def close(self) -> None:
        self._background.shutdown()

    def state(self) -> dict[str, Any]:
        """For a checkpoint: fields of `RunState`."""
        last = self.last.state()
        return {"evaluated_at": last.pop("step"), "best": self.best, **last, "final": self.final.state()}

    def restore(
        self, *, evaluated_at: int, best: Mapping[str, float], scores: Rows, bicubic: Rows, final: Mapping[str, Any]
    ) -> None:
        """The inverse of `state`."""
        self.best = dict(best)
        self.last = Scored.of(evaluated_at, scores, bicubic)
        self.final = Scored.of(**final)

    def _score_all(self, step: int, network: nn.Module) -> None:
        began, pairs = time.perf_counter(), self._data.valid_all
        evaluation = self._score(network, pairs)
        if evaluation is not None:
            self.final = Scored(step, tuple(evaluation.scores), self._score_bicubic(pairs))
            self._record("at the end, step %d", self.final, "final", began)

    def _best(self) -> dict[str, float]:
        """Under `best/`, which MLflow's pages show first and begin a comparison with."""
        name, best = self._best_name, self.best[self._best_metric]
        bicubic = Evaluation(list(self.last.bicubic)).mean[name]
        return {f"best/{name}": best, f"best/{name}_over_bicubic": best - bicubic}

    def _record(self, when: str, scored: Scored, prefix: str, began: float) -> dict[str, float]:
        metrics = scored.metrics(prefix, self._names)
        self._tracker.log(scored.step, metrics)
        values = ((name, metrics[f"{prefix}/{name}"]) for name in self._names)
        shown = ", ".join(f"{title(name)} {value:.{digits(name)}f}" for name, value in values)
        text = f"{when}: %s on %d images, in %.1f s"
        log.info(text, scored.step, shown, len(scored.scores), time.perf_counter() - began)
        return metrics

    def _score(self, network: nn.Module, pairs: Sequence[Pair], on_image: OnImage | None = None) -> Evaluation | None:
        """Tile by tile, and leave the network's mode as it was; None where a signal cut it short."""
        training, benchmark = network.training, torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # images differ in size
        network.eval()
        try:
            return evaluate(
                network, pairs, crop=self._data.scale, device=self._device, tile=TILE, grid=grid_of(network),
                measures=self._measures, on_image=on_image, should_stop=self._should_stop,
            )  # fmt: skip
        except Interrupted:
            return None
        finally:
            network.train(training)
            torch.backends.cudnn.benchmark = benchmark

    def _score_bicubic(self, pairs: Sequence[Pair]) -> tuple[Score, ...]:
        scale = self._data.scale
        keys = [(*_key(pair), *self._measures) for pair in pairs]
        new = (pair for pair, key in zip(pairs, keys, strict=True) if key not in _bicubic)

        def enlarge(pair: ScoredPair) -> np.ndarray:
            return imresize_uint8(pair.lr, scale)

        found = iter(score_pairs(new, enlarge, crop=scale, measures=self._measures).scores)
        scores = tuple(_bicubic[key] if key in _bicubic else next(found) for key in keys)
        _bicubic.update(zip(keys, scores, strict=True))
        return scores

    def _draw(self, step: int, pair: ScoredPair, sr: np.ndarray) -> None:
        name = Path(pair.name).stem
        path = self._folder / f"{step_name(step)}-{name}.png"
        try:
            picture = picture_strip(pair.lr, sr, pair.hr, scale=self._data.scale)
            try:
                self._save(picture, path)
            except FileNotFoundError:  # somebody deletes the run's folder, of which run.log tells
                self._save(picture, path)
            self._tracker.picture(step, f"valid/{name}", path)
        except OSError as error:
            log.warning("the picture of %s at step %d could not be written: %s", pair.name, step, error)

    def _save(self, picture: Image, path: Path) -> None:
        own_folder(self._folder.parent, self._folder).mkdir(parents=True, exist_ok=True)
        with draft_of(path) as draft:
            picture.save(draft, format="PNG")
