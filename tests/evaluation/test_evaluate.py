from __future__ import annotations

import csv
import io
import logging
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage import data
from torch import Tensor

from sr_runner.errors import RequestError
from sr_runner.evaluation.metrics import Score, score
from sr_runner.evaluation.protocol import Evaluation, evaluate, score_pairs
from sr_runner.imresize import imresize, imresize_uint8
from sr_runner.inference.tiling import Interrupted

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    name: str
    lr: UInt8
    hr: UInt8


def pairs(count: int, scale: int = 2, size: int = 96) -> list[Photograph]:
    whole = data.chelsea()
    crops = [whole[7 * i : 7 * i + size, 30 * i : 30 * i + size] for i in range(count)]
    return [Photograph(f"cat{i}", imresize_uint8(hr, Fraction(1, scale)), hr) for i, hr in enumerate(crops)]


def nearest(lr: Tensor) -> Tensor:
    return lr.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def test_a_network_is_scored_on_its_clipped_and_rounded_output() -> None:
    def network(lr: Tensor) -> Tensor:
        return imresize(lr, 2)  # overshoots [0, 1]

    [pair] = pairs(1)
    evaluation = evaluate(network, [pair], crop=2, device="cpu")
    sr = imresize_uint8(pair.lr, 2)  # rounds and clips by itself
    assert evaluation.scores[0].psnr == pytest.approx(score("", sr, pair.hr, crop=2).psnr, abs=1e-3)


def test_the_network_sees_one_image_at_a_time_in_unit_range_without_gradients() -> None:
    seen: list[Tensor] = []

    def network(lr: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(lr)
        return nearest(lr)

    images = pairs(2)
    evaluate(network, images, crop=2, device="cpu")
    for lr, pair in zip(seen, images, strict=True):
        assert lr.shape == (1, 3, 48, 48) and lr.dtype == torch.float32
        assert lr.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal((lr[0].permute(1, 2, 0) * 255).round().numpy(), pair.lr)


def test_tile_by_tile_the_scores_are_the_same_and_no_more_than_a_tile_is_seen() -> None:
    seen: list[int] = []

    def network(lr: Tensor) -> Tensor:
        seen.append(max(lr.shape[-2:]))
        return nearest(lr)

    images = pairs(2)
    whole = evaluate(nearest, images, crop=2, device="cpu")
    tiled = evaluate(network, images, crop=2, device="cpu", tile=16, overlap=4)
    assert tiled.scores == whole.scores
    assert max(seen) == 24 and len(seen) == 2 * 9


def test_images_in_read_only_memory_are_evaluated() -> None:
    [pair] = pairs(1)
    pair.lr.flags.writeable = pair.hr.flags.writeable = False
    assert evaluate(nearest, [pair], crop=2, device="cpu").scores[0].psnr > 20


def test_scores_and_callbacks_come_in_the_order_of_the_pairs() -> None:
    images = pairs(9)
    called: list[tuple[str, tuple[int, ...], Score]] = []
    evaluation = evaluate(
        nearest, images, crop=2, device="cpu", on_image=lambda p, sr, s: called.append((p.name, sr.shape, s))
    )
    assert [each.image for each in evaluation.scores] == [pair.name for pair in images]
    assert called == [(each.image, (96, 96, 3), each) for each in evaluation.scores]
    assert evaluation.seconds_per_megapixel > 0


def test_the_mean_is_over_images_not_over_pixels() -> None:
    images = [*pairs(1, size=96), *pairs(1, size=40)]
    evaluation = evaluate(nearest, images, crop=2, device="cpu")
    assert evaluation.mean["psnr"] == pytest.approx((evaluation.scores[0].psnr + evaluation.scores[1].psnr) / 2)
    assert list(evaluation.mean) == ["psnr", "ssim", "psnr_y", "ssim_y"]


def test_evaluating_twice_gives_the_same_numbers_to_the_last_bit() -> None:
    images = pairs(4)
    first, second = (evaluate(nearest, images, crop=2, device="cpu").scores for _ in range(2))
    assert first == second


def test_a_network_of_another_scale_is_refused_with_both_sizes() -> None:
    with pytest.raises(RequestError, match=r"made \(1, 3, 48, 48\) of .*\(1, 3, 24, 24\).*\(1, 3, 96, 96\)"):
        evaluate(nearest, pairs(1, scale=4), crop=4, device="cpu")


def test_stopping_in_the_middle_raises_interrupted_before_the_next_image() -> None:
    done: list[str] = []

    def network(lr: Tensor) -> Tensor:
        done.append("image")
        return nearest(lr)

    with pytest.raises(Interrupted):
        evaluate(network, pairs(5), crop=2, device="cpu", should_stop=lambda: len(done) == 2)
    assert len(done) == 2


def test_a_network_that_gives_nan_scores_black_pixels_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def network(lr: Tensor) -> Tensor:
        return nearest(lr) * math.nan

    [pair] = pairs(1)
    with caplog.at_level(logging.WARNING):
        evaluation = evaluate(network, [pair], crop=2, device="cpu")
    assert evaluation.scores[0] == score("cat0", np.zeros_like(pair.hr), pair.hr, crop=2)
    assert "NaN on 1 of 1 images" in caplog.text


def test_nan_in_one_tile_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def network(lr: Tensor) -> Tensor:
        calls.append(0)
        return nearest(lr) if len(calls) > 1 else nearest(lr).fill_(math.nan)

    with caplog.at_level(logging.WARNING):
        evaluate(network, pairs(2), crop=2, device="cpu", tile=16, overlap=4)
    assert "NaN on 1 of 2 images" in caplog.text


def test_something_that_is_no_network_is_scored_alike() -> None:
    images = pairs(2)
    evaluation = score_pairs(images, lambda pair: imresize_uint8(pair.lr, 2), crop=2)
    expected = [score(p.name, imresize_uint8(p.lr, 2), p.hr, crop=2) for p in images]
    assert evaluation.scores == expected


EXAMPLE = Evaluation([Score("a,b", 30.0, 0.9, 31.0, 0.91), Score("c", math.inf, 1.0, math.inf, 1.0)])


def test_the_csv_table_has_one_row_per_image_and_reads_back_exactly() -> None:
    rows = list(csv.DictReader(io.StringIO(EXAMPLE.as_csv())))
    assert list(rows[0]) == ["image", "psnr", "ssim", "psnr_y", "ssim_y"]
    read = [Score(row.pop("image"), **{key: float(value) for key, value in row.items()}) for row in rows]
    assert read == EXAMPLE.scores


def test_the_mean_of_no_images_is_not_a_number() -> None:
    assert math.isnan(Evaluation([]).mean["psnr"])
