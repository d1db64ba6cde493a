from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from skimage import data
from torch import Tensor

from sr_runner.commands.evaluate.models import BICUBIC, Model
from sr_runner.commands.evaluate.suite import Suite
from sr_runner.data.benchmarks import Benchmark, read_pair
from sr_runner.evaluation.metrics import Score
from sr_runner.evaluation.pictures import Extremes, error_sheet, file_name
from sr_runner.imresize import imresize_uint8

UInt8 = npt.NDArray[np.uint8]


def crop(index: int) -> UInt8:
    left = 40 * index
    return np.asarray(data.chelsea()[80:144, left : left + 64])


def benchmark(count: int = 3) -> Benchmark:
    return Benchmark([partial(read_pair, f"cat{i}", 2, partial(crop, i)) for i in range(count)], "Set1", 2)


def nearest(lr: Tensor) -> Tensor:
    return lr.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def absolute(sr: UInt8, hr: UInt8) -> float:
    return float(np.abs(sr.astype(int) - hr).mean())


SUITE = Suite(torch.device("cpu"), tile=256, overlap=8)


def test_bicubic_stands_beside_the_models_and_first() -> None:
    [(bicubic, _), (model, _)] = SUITE.run([Model("nearest", nearest, scale=2)], benchmark())
    assert (bicubic.model, bicubic.asked_for) == (BICUBIC, False)
    assert (model.model, model.asked_for) == ("nearest", True)
    assert bicubic.evaluation.mean["psnr"] > model.evaluation.mean["psnr"]
    [(asked, _)] = SUITE.run([Model(BICUBIC)], benchmark())
    assert asked.asked_for and asked.evaluation.scores == bicubic.evaluation.scores


def test_further_metrics_see_each_sr_image_with_its_hr_image() -> None:
    suite = Suite(torch.device("cpu"), tile=256, overlap=8, measures={"absolute": absolute})
    [(bicubic, _)] = suite.run([Model(BICUBIC)], benchmark())
    expected = [absolute(imresize_uint8(pair.lr, 2), pair.hr) for pair in benchmark()]
    assert [row["absolute"] for row in bicubic.evaluation.rows()] == expected
    assert bicubic.evaluation.mean["absolute"] == sum(expected) / len(expected)


def test_the_best_and_the_worst_image_are_kept_and_no_others() -> None:
    extremes = Extremes()
    for pair, psnr in zip(benchmark(3), (30.0, 20.0, 25.0), strict=True):
        extremes.see(pair, pair.hr, Score(pair.name, psnr, 1.0, 99.0, 1.0))
    assert extremes.best is not None and extremes.worst is not None
    assert (extremes.best[0].name, extremes.worst[0].name) == ("cat0", "cat1")


def test_the_error_map_of_a_perfect_image_is_black_and_of_bicubic_is_not() -> None:
    pair = benchmark()[0]
    sheet = np.asarray(error_sheet(pair, pair.hr, scale=2))
    top = sheet.shape[0] // 2 + 12
    error_of_bicubic, error_of_sr = sheet[top : top + 250, 12:250], sheet[top : top + 250, 290:520]
    assert error_of_sr.max() <= 4
    assert error_of_bicubic.mean() > 8


def test_pictures_have_names_without_anything_a_shell_minds() -> None:
    assert file_name("Set5", "a b/c", "best cat (1) 30.05 dB") == "Set5-a-b-c-best-cat-1-30.05-dB.png"


def test_pictures_are_drawn_where_a_folder_is_named(tmp_path: Path) -> None:
    suite = Suite(torch.device("cpu"), tile=256, overlap=8, pictures=tmp_path / "sheets")
    [(_, none), (_, drawn)] = suite.run([Model("nearest", nearest, scale=2)], benchmark())
    assert none == [] and len(drawn) == 2 and all(path.is_file() for path in drawn)
