"""Validation by itself: what is scored when, what is the best, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sr_runner.data import Pair
from sr_runner.evaluation.metrics import METRICS
from sr_runner.evaluation.named import Measure
from sr_runner.tracking import NoTracker
from sr_runner.training.validation import Scored, Validation


class Notebook(NoTracker):
    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, set[str]]] = []
        self.pictures: list[tuple[int, str, bool]] = []
        self.values: dict[str, float] = {}

    def log(self, step: int, metrics: Any) -> None:
        self.values |= metrics
        self.logged.append((step, {key.partition("/")[0] for key in metrics}))

    def picture(self, step: int, key: str, image: Path) -> None:
        self.pictures.append((step, key, image.stat().st_size > 0))


class Shift(nn.Module):
    """Enlarges by repeating pixels, and adds `by`: the more, the worse."""

    def __init__(self, by: float):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return lr.repeat_interleave(2, -1).repeat_interleave(2, -2) + self.by


def pair(name: str) -> Pair:
    lr = np.full((12, 12, 3), 100, np.uint8)
    lr[::2] = 120
    return Pair(name, lr, lr.repeat(2, 0).repeat(2, 1))


class Bench:
    def __init__(
        self, folder: Path, few: int = 1, last_step: int = 9, best: str = "psnr", measures: Mapping[str, Measure] = {}
    ):
        pairs = [pair("a.png"), pair("b.png")]
        self.tracker, self.stopped = Notebook(), False
        data: Any = SimpleNamespace(scale=2, valid=pairs[:few], valid_all=pairs)
        self.validation = Validation(
            data, self.tracker, device=torch.device("cpu"), last_step=last_step, pictures=1,
            metrics=[*METRICS, *measures], measures=measures, best_metric=f"valid/{best}",
            should_stop=lambda: self.stopped,
        )  # fmt: skip
        self.validation.begin(folder)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.validation.close()


def test_the_best_is_the_evaluation_of_the_highest_psnr_whichever_came_last(bench: Bench) -> None:
    for step, by in ((1, 0.2), (2, 0.05), (3, 0.05), (4, 0.1)):
        bench.validation.run(step, Shift(by))
    assert bench.validation.best["step"] == 2 and bench.validation.last.step == 4
    assert bench.validation.best["valid/psnr"] > bench.validation.metrics["valid/psnr"]


def distance(sr: np.ndarray, hr: np.ndarray) -> float:
    return float(np.abs(sr.astype(int) - hr).mean())


def test_the_best_by_a_metric_that_falls_is_the_lowest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, few=2, best="lpips", measures={"lpips": distance})
    for step, by in ((1, 0.2), (2, 0.05), (3, 0.1)):
        bench.validation.run(step, Shift(by))
    best, bicubic = bench.validation.best, [score.others["lpips"] for score in bench.validation.last.bicubic]
    assert best["step"] == 2 and 0 < best["valid/lpips"] < bench.validation.metrics["valid/lpips"]
    assert bench.tracker.values["best/lpips"] == best["valid/lpips"]
    assert bench.tracker.values["best/lpips_over_bicubic"] == best["valid/lpips"] - sum(bicubic) / 2
    assert "best/psnr" not in bench.tracker.values
    bench.validation.close()


def test_a_metric_that_is_new_at_a_resume_begins_a_best_of_its_own(bench: Bench, tmp_path: Path) -> None:
    bench.validation.run(1, Shift(0.05))
    other = Bench(tmp_path, best="lpips", measures={"lpips": distance})
    other.validation.restore(**bench.validation.state())
    assert other.validation.metrics.keys() == {f"valid/{name}" for name in METRICS}
    other.validation.run(2, Shift(0.2))
    assert other.validation.best["step"] == 2 and "lpips" in other.validation.last.bicubic[0].others
    other.validation.close()


def test_bicubic_is_scored_once_for_the_same_images_and_compared_with(bench: Bench, tmp_path: Path) -> None:
    validation = bench.validation
    validation.run(1, Shift(0.2))
    first = validation.last.bicubic
    assert len(first) == 1 and 20 < first[0].psnr < 60
    validation.run(2, Shift(0.05))
    assert validation.last.bicubic is first
    assert bench.tracker.values["best/psnr"] == validation.best["valid/psnr"] == validation.last.scores[0].psnr
    assert bench.tracker.values["best/psnr_over_bicubic"] == validation.best["valid/psnr"] - first[0].psnr
    more = Bench(tmp_path, few=2).validation
    more.restore(**validation.state())
    more.run(3, Shift(0.2))
    assert len(more.last.bicubic) == 2 and more.last.bicubic[0] is first[0]  # so do the jobs of a sweep
    more.close()


def test_bicubic_is_scored_anew_for_another_image_of_the_same_name(tmp_path: Path) -> None:
    found = []
    for dark in (0, 100):
        bench = Bench(tmp_path)
        bench.validation._data.valid[0].lr[:] += np.uint8(dark)
        bench.validation.run(1, Shift(0.2))
        found.append(bench.validation.last.bicubic[0].psnr)
        bench.validation.close()
    assert found[1] < found[0] - 5


def test_only_the_last_step_scores_all_images(bench: Bench) -> None:
    bench.validation.run(3, Shift(0.1))
    assert not bench.validation.is_lacking(3) and bench.validation.final.step == 0
    assert bench.validation.is_lacking(9)
    bench.validation.run(9, Shift(0.1))
    assert not bench.validation.is_lacking(9) and len(bench.validation.final.scores) == 2
    assert bench.tracker.logged == [(3, {"valid"}), (3, {"best"}), (9, {"valid"}), (9, {"best"}), (9, {"final"})]


def test_where_the_evaluations_have_all_images_the_last_step_scores_none_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, few=2)
    bench.validation.run(9, Shift(0.1))
    assert bench.validation.final.step == 0 and not bench.validation.is_lacking(9)
    bench.validation.close()


def test_pictures_are_drawn_of_the_first_images_and_known_to_the_tracker(bench: Bench) -> None:
    for step in (3, 4):
        bench.validation.run(step, Shift(0.1))
    bench.validation.flush()
    assert bench.tracker.pictures == [(3, "valid/a", True), (4, "valid/a", True)]


def test_the_mode_of_the_network_stays_and_a_signal_leaves_no_scores(bench: Bench) -> None:
    network = Shift(0.1).train()
    bench.validation.run(1, network)
    assert network.training
    bench.stopped = True
    assert bench.validation.run(2, network.eval()) is None
    assert bench.validation.last.step == 1 and not network.training and bench.validation.is_lacking(2)


def test_its_state_restores_it(bench: Bench, tmp_path: Path) -> None:
    bench.validation.run(9, Shift(0.1))
    other = Bench(tmp_path).validation
    other.restore(**bench.validation.state())
    assert (other.last, other.final, other.best) == (
        bench.validation.last, bench.validation.final, bench.validation.best,
    )  # fmt: skip
    assert not other.is_lacking(9)
    other.close()


def test_without_images_there_is_nothing_to_score(tmp_path: Path) -> None:
    bench = Bench(tmp_path, few=0)
    assert bench.validation.run(3, Shift(0.1)) is None
    assert bench.validation.last == Scored(3) and bench.validation.metrics == {} and bench.validation.best == {}
    bench.validation.close()
