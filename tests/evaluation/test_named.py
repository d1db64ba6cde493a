"""Metrics by name: what is loaded, what it is given, and that the training notices nothing of it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sr_runner.config.settings import TrainerSettings
from sr_runner.errors import RequestError, RunError
from sr_runner.evaluation.metrics import METRICS
from sr_runner.evaluation.named import Measure, lower_is_better, measures

GREY = np.full((20, 24, 3), 51, np.uint8)


def made(*names: str, crop: int = 0) -> dict[str, Measure]:
    return measures(names, key="metrics", crop=crop, device="cpu")


def drawn() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002


def test_psnr_and_ssim_are_the_default_and_need_nothing_beside_the_scores() -> None:
    assert TrainerSettings().metrics == [*METRICS]
    assert made(*METRICS) == {} and not any(lower_is_better(name, "") for name in METRICS)


def test_a_class_of_ones_own_sees_the_images_in_0_to_1_without_their_borders() -> None:
    framed = np.zeros((24, 28, 3), np.uint8)
    framed[2:-2, 2:-2] = GREY
    assert made("own_metrics.Mean", crop=2)["own_metrics.Mean"](framed, framed) == pytest.approx(0.2)
    assert lower_is_better("own_metrics.Drawing", "") and not lower_is_better("own_metrics.Mean", "")


def test_neither_loading_nor_measuring_changes_what_others_draw_and_each_image_gets_the_same_draws() -> None:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    undisturbed = drawn()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    measure = made("own_metrics.Drawing")["own_metrics.Drawing"]
    values = {measure(GREY, GREY // 2) for _ in range(3)}
    assert drawn() == undisturbed and len(values) == 1
    assert values == {made("own_metrics.Drawing")["own_metrics.Drawing"](GREY, GREY // 2)}


def test_a_metric_that_fails_is_named_with_the_image() -> None:
    with pytest.raises(RunError, match=r"metrics=own_metrics.Mean fails on an image of 24x20.*it is black"):
        made("own_metrics.Mean")["own_metrics.Mean"](GREY * 0, GREY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lpisp", "Did you mean 'lpips'?"),
        ("niqe", "pip install 'sr-run[pyiqa]'"),
        ("lpips", "pip install 'sr-run[lpips]'"),
        ("dists", "pip install 'sr-run[dists]'"),
        ("own_metrics.Maen", "Did you mean 'Mean'?"),
        ("own_metrics.Offline", "its weights cannot be downloaded (no route to host)"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyiqa", "lpips", "DISTS_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError) as refused:
        made(name)
    assert str(refused.value).startswith(f"metrics={name}") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_metric_of_pyiqas_is_known_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    pyiqa = pytest.importorskip("pyiqa")
    assert lower_is_better("piqe", "") and lower_is_better("niqe", "") and not lower_is_better("clipiqa_plus", "")
    sr, hr = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    batches = [torch.from_numpy(image[2:-2, 2:-2]).permute(2, 0, 1)[None] / 255 for image in (sr, hr)]
    for name in ("piqe", "gmsd"):  # of one image, of a pair
        expected = float(pyiqa.create_metric(name, device="cpu")(*batches))
        assert made(name, crop=2)[name](sr, hr) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RequestError, match="Did you mean 'niqe'"):
        made("niqqe")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_lpips_is_its_authors_package_on_images_in_minus_1_to_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lpips = pytest.importorskip("lpips")
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # a file that is there is not downloaded
    torch.manual_seed(0)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    weights = torchvision.models.alexnet().state_dict()
    torch.save(weights, tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    sr, hr = np.random.default_rng(0).integers(0, 256, (2, 64, 72, 3), np.uint8)
    batches = [torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1 for image in (sr, hr)]
    with torch.no_grad():
        expected = float(lpips.LPIPS(net="alex", verbose=False)(*batches))
    assert made("lpips")["lpips"](sr, hr) == pytest.approx(expected, rel=1e-5)
