from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sr_runner.commands.evaluate.published import Published
from sr_runner.commands.evaluate.report import Result, as_csv, as_json, as_markdown, summary, writer_for
from sr_runner.errors import RequestError
from sr_runner.evaluation.metrics import Score
from sr_runner.evaluation.protocol import Evaluation

SCORES = [Score("baby", 30.0, 0.8, 32.0, 0.9), Score("bird|2", 31.0, 0.9, 33.0, 0.95)]


def result(model: str, benchmark: str = "Set5", **more: object) -> Result:
    evaluation = Evaluation(SCORES, seconds_per_megapixel=4.0)
    return Result(model, benchmark, 4, "LR by MATLAB bicubic from HR", evaluation, **more)  # type: ignore[arg-type]


BICUBIC = result("bicubic", published=Published(28.42, 0.8104), asked_for=False)
EDSR = result("edsr", parameters=1_517_571, published=Published(32.09, 0.8936))


def test_the_csv_of_one_model_on_one_benchmark_has_the_five_columns_alone() -> None:
    rows = list(csv.reader(io.StringIO(as_csv([BICUBIC, EDSR]))))
    assert rows[0] == ["image", "psnr", "ssim", "psnr_y", "ssim_y"]
    assert rows[1:] == [["baby", "30.0", "0.8", "32.0", "0.9"], ["bird|2", "31.0", "0.9", "33.0", "0.95"]]


def test_the_csv_of_several_tells_model_and_benchmark_in_further_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([EDSR, result("wdsr"), result("edsr", "B100")]))))
    assert list(rows[0]) == ["image", "psnr", "ssim", "psnr_y", "ssim_y", "benchmark", "model"]
    assert [(row["benchmark"], row["model"]) for row in rows[::2]] == [
        ("Set5", "edsr"), ("Set5", "wdsr"), ("B100", "edsr"),
    ]  # fmt: skip


def test_bicubic_is_in_the_csv_where_it_was_asked_for() -> None:
    assert as_csv([result("bicubic")]).count("\n") == 3


def test_further_metrics_have_columns_of_their_own_everywhere() -> None:
    scores = [replace(score, others={"lpips": lpips}) for score, lpips in zip(SCORES, (0.1, 0.3), strict=True)]
    more = replace(EDSR, evaluation=Evaluation(scores))
    assert as_csv([more]).splitlines()[0] == "image,psnr,ssim,psnr_y,ssim_y,lpips"
    assert "LPIPS" in summary([more]) and "0.2000" in summary([more])


def test_the_summary_sets_models_beside_bicubic_and_published_numbers() -> None:
    title, _, header, *rows = summary([BICUBIC, EDSR]).splitlines()
    assert title == ("Set5, scale 4: 2 images (published: of 5), LR by MATLAB bicubic from HR, 4 border pixels cropped")
    assert header.split() == ["model", "PSNR-Y", "SSIM-Y", "PSNR", "SSIM", "published", "parameters", "s/Mpx"]
    assert rows[0].split() == ["bicubic", "32.500", "0.9250", "30.500", "0.8500", "28.42", "/", "0.8104", "4.000"]
    assert rows[1].split()[-5:] == ["32.09", "/", "0.8936", "1,517,571", "4.000"]


def test_each_benchmark_has_a_table_of_its_own() -> None:
    text = summary([EDSR, result("edsr", "B100")])
    assert text.index("Set5, scale 4") < text.index("B100, scale 4")
    assert "published" not in text[text.index("B100") :]


def test_markdown_holds_the_images_too() -> None:
    text = as_markdown([BICUBIC, EDSR])
    assert "Set5, edsr" in text and "baby" in text
    assert "| bird\\|2 | 33.000 |" in as_markdown([EDSR])


def test_the_json_holds_everything_and_is_strict() -> None:
    perfect = Result("copy", "Set5", 4, "", Evaluation([Score("a", math.inf, 1.0, math.inf, 1.0)]))
    table = json.loads(as_json([BICUBIC, EDSR, perfect]), parse_constant=lambda name: pytest.fail(name))
    assert table[1]["parameters"] == 1_517_571
    assert table[1]["published"] == {"psnr_y": 32.09, "ssim_y": 0.8936, "psnr": None}
    assert table[1]["mean"]["psnr_y"] == 32.5
    assert table[1]["images"][1] == {"image": "bird|2", "psnr": 31.0, "ssim": 0.9, "psnr_y": 33.0, "ssim_y": 0.95}
    assert table[2]["mean"]["psnr"] == "inf"


def test_the_ending_of_the_file_chooses_the_format() -> None:
    assert writer_for(Path("a/table.CSV")) is as_csv
    with pytest.raises(
        RequestError, match=r"output=table\.xls: expected the name of a file that ends in one of \.csv \.json \.md"
    ):
        writer_for(Path("table.xls"))
