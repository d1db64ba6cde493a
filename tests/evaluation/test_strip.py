from __future__ import annotations

from fractions import Fraction

import numpy as np
from skimage import data

from sr_runner.evaluation.strip import detailed_crop, picture_strip
from sr_runner.imresize import imresize_uint8


def test_the_crop_lies_on_the_part_with_the_detail() -> None:
    hr = np.full((200, 300, 3), 90, dtype=np.uint8)
    hr[100:148, 200:248] = np.random.default_rng(0).integers(0, 256, (48, 48, 3))
    crop = detailed_crop(hr, scale=4, size=48)
    assert (crop.top, crop.left, crop.size) == (100, 200, 48)


def test_the_crop_is_that_of_an_exhaustive_search() -> None:
    hr = data.chelsea()[:60, :80]
    crop = detailed_crop(hr, scale=2, size=24)
    grey = hr.astype(np.int64).sum(axis=2)
    mean = grey.reshape(30, 2, 40, 2).mean(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    detail = {
        (top, left): ((grey - mean)[top : top + 24, left : left + 24] ** 2).sum()
        for top in range(2, 60 - 24, 2)
        for left in range(2, 80 - 24, 2)
    }
    assert max(detail, key=lambda place: detail[place]) == (crop.top, crop.left)


def test_the_crop_stays_inside_images_of_any_size() -> None:
    rng = np.random.default_rng(1)
    for height, width, scale in [(20, 20, 2), (13, 90, 4), (97, 96, 3), (8, 8, 8), (96, 96, 4), (104, 97, 4)]:
        crop = detailed_crop(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), scale=scale, size=96)
        assert crop.top >= 0 and crop.left >= 0
        assert crop.top + crop.size <= height and crop.left + crop.size <= width


def test_the_strip_shows_bicubic_sr_and_hr_pixel_for_pixel() -> None:
    hr = data.chelsea()[:288, :448]
    lr = imresize_uint8(hr, Fraction(1, 4))
    sr = (hr // 2 + imresize_uint8(lr, 4) // 2).astype(np.uint8)
    strip = np.asarray(picture_strip(lr, sr, hr, scale=4))
    crop = detailed_crop(hr, scale=4, size=96)
    for index, image in enumerate([imresize_uint8(lr, 4), sr, hr]):
        left = 12 + index * (288 + 10)
        panel = strip[12 : 12 + 288, left : left + 288]
        assert np.array_equal(panel[1::3, 1::3], crop.of(image))
        assert np.array_equal(panel, crop.of(image).repeat(3, axis=0).repeat(3, axis=1))


def test_two_networks_are_shown_on_the_same_crop() -> None:
    hr = data.chelsea()[:200, :200]
    lr = imresize_uint8(hr, Fraction(1, 2))
    first = np.asarray(picture_strip(lr, hr // 2, hr, scale=2))
    second = np.asarray(picture_strip(lr, hr, hr, scale=2))
    panels = slice(12, 300)
    assert np.array_equal(first[panels, :300], second[panels, :300])
    assert np.array_equal(first[panels, -300:], second[panels, -300:])
    assert not np.array_equal(first, second)
