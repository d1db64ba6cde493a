from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_runner.errors import RequestError
from sr_runner.evaluation.metrics import luma, score
from sr_runner.imresize import imresize_uint8

PHOTOGRAPHS = {
    "chelsea": Path(skimage.__file__).parent / "data" / "chelsea.png",
    "flower": Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
}

UInt8 = npt.NDArray[np.uint8]


def photograph(name: str, scale: int = 1) -> UInt8:
    image = np.asarray(Image.open(PHOTOGRAPHS[name]).convert("RGB"))
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


def noisy(image: UInt8, seed: int, sigma: float = 9.0) -> UInt8:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def reference_ssim(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], **more: int) -> float:
    return float(
        structural_similarity(
            x, y, win_size=11, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, **more
        )
    )


@pytest.mark.parametrize("crop", [0, 2, 4])
@pytest.mark.parametrize("name", ["chelsea", "flower"])
def test_psnr_and_ssim_equal_those_of_scikit_image(name: str, crop: int) -> None:
    hr = photograph(name)
    sr = noisy(hr, seed=crop)
    inside = slice(crop, -crop or None)
    x, y = (image[inside, inside].astype(np.float64) for image in (sr, hr))
    x_luma, y_luma = rgb2ycbcr(x / 255)[..., 0], rgb2ycbcr(y / 255)[..., 0]

    result = score(name, sr, hr, crop=crop)

    assert result.image == name
    assert result.psnr == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-6)
    assert result.ssim == pytest.approx(reference_ssim(x, y, channel_axis=2), abs=1e-6)
    assert result.psnr_y == pytest.approx(peak_signal_noise_ratio(y_luma, x_luma, data_range=255), abs=1e-6)
    assert result.ssim_y == pytest.approx(reference_ssim(x_luma, y_luma), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "scale", "psnr", "ssim", "psnr_y", "ssim_y"),
    [
        ("chelsea", 4, 30.0516, 0.7811, 31.4758, 0.8064),
        ("flower", 4, 29.2125, 0.9014, 30.7165, 0.9182),
        ("chelsea", 2, 33.8172, 0.9046, 35.2586, 0.9160),
    ],
)
def test_bicubic_down_and_up_has_the_figures_of_the_protocol(
    name: str, scale: int, psnr: float, ssim: float, psnr_y: float, ssim_y: float
) -> None:
    hr = photograph(name, scale)
    result = score(name, imresize_uint8(imresize_uint8(hr, Fraction(1, scale)), scale), hr, crop=scale)
    assert (result.psnr, result.psnr_y) == pytest.approx((psnr, psnr_y), abs=1e-3)
    assert (result.ssim, result.ssim_y) == pytest.approx((ssim, ssim_y), abs=1e-4)


def test_an_error_of_one_level_everywhere_has_the_psnr_that_the_formula_gives() -> None:
    hr = np.full((20, 30, 3), 100, dtype=np.uint8)
    result = score("flat", hr + np.uint8(1), hr, crop=2)
    assert result.psnr == pytest.approx(20 * math.log10(255))
    # One level of grey is 219/255 of a level of Y in the studio range.
    assert result.psnr_y == pytest.approx(20 * math.log10(255 * 255 / 219))


def test_identical_images_score_infinite_psnr_and_ssim_one() -> None:
    image = photograph("chelsea")
    result = score("same", image, image.copy(), crop=4)
    assert result.psnr == result.psnr_y == math.inf
    assert (result.ssim, result.ssim_y) == pytest.approx((1, 1))


def test_black_and_white_have_the_studio_levels_16_and_235() -> None:
    levels = luma(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8))
    assert levels == pytest.approx(np.array([[16.0, 235.0]]))


def test_pixels_in_the_cropped_border_do_not_count() -> None:
    hr = photograph("chelsea")[:64, :64]
    sr = noisy(hr, seed=1)
    spoilt = sr.copy()
    spoilt[:4], spoilt[-4:], spoilt[:, :4], spoilt[:, -4:] = 0, 255, 0, 255
    assert score("a", spoilt, hr, crop=4) == score("a", sr, hr, crop=4)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(11, 60), width=st.integers(11, 60), band=st.integers(1, 2000), seed=st.integers(0, 99))
def test_the_score_does_not_depend_on_the_bands_it_is_computed_in(
    height: int, width: int, band: int, seed: int
) -> None:
    hr = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sr = noisy(hr, seed)
    whole = score("x", sr, hr, crop=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sr_runner.evaluation.metrics._BAND_PIXELS", band)
        banded = score("x", sr, hr, crop=0)
    assert banded.psnr == pytest.approx(whole.psnr, abs=1e-9)
    assert banded.psnr_y == pytest.approx(whole.psnr_y, abs=1e-9)
    assert banded.ssim == pytest.approx(whole.ssim, abs=1e-9)
    assert banded.ssim_y == pytest.approx(whole.ssim_y, abs=1e-9)


def test_images_of_different_size_are_refused_by_name_and_size() -> None:
    with pytest.raises(RequestError, match=r"'butterfly': SR is 32x30 and HR is 32x32"):
        score("butterfly", np.zeros((30, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), crop=2)


def test_an_image_smaller_than_the_window_is_refused_with_the_least_size() -> None:
    with pytest.raises(RequestError, match=r"'stamp' is 18x18: .* at least 19x19"):
        score("stamp", np.zeros((18, 18, 3), np.uint8), np.zeros((18, 18, 3), np.uint8), crop=4)
