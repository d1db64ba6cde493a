from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sr_runner.errors import RequestError
from sr_runner.imresize import imresize, imresize_uint8

Array = npt.NDArray[np.float64]


def matlab_weights(size: int, scale: float) -> Array:
    """MATLAB's `contributions` as a dense out x in matrix: kernel, antialiasing, symmetric edges, normalisation."""
    width = 4 / min(scale, 1)
    x = np.arange(1, math.ceil(size * scale) + 1)
    u = x / scale + 0.5 * (1 - 1 / scale)
    index = np.floor(u - width / 2)[:, None] + np.arange(math.ceil(width) + 2)[None]
    t = np.abs((u[:, None] - index) * min(scale, 1))
    cubic = (1.5 * t**3 - 2.5 * t**2 + 1) * (t <= 1) + (-0.5 * t**3 + 2.5 * t**2 - 4 * t + 2) * ((t > 1) & (t <= 2))
    weights = cubic / cubic.sum(axis=1, keepdims=True)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    dense = np.zeros((len(x), size))
    np.add.at(dense, (np.arange(len(x))[:, None], mirror[(index - 1).astype(np.int64) % (2 * size)]), weights)
    return dense


def matlab_imresize(image: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    rows, columns = matlab_weights(image.shape[0], scale), matlab_weights(image.shape[1], scale)
    resized = np.einsum("oh,hwc->owc", rows, image.astype(np.float64), optimize=True)
    resized = np.einsum("pw,owc->opc", columns, resized, optimize=True)
    return np.floor(np.clip(resized, 0, 255) + 0.5).astype(np.uint8)


def photograph_like(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth shapes, hard edges and noise, with saturated areas."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / a + y / b) for a, b in ((7, 13), (31, 5), (11, 17))], axis=-1)
    edges = ((x // 9 + y // 14) % 2)[..., None]
    image = 127 + 110 * waves + 60 * edges + rng.normal(0, 12, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


SCALES = [*(Fraction(1, divisor) for divisor in (2, 3, 4, 8)), *(Fraction(factor) for factor in (2, 3, 4, 8))]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("size", [(303, 451), (240, 264), (257, 130)], ids=str)
def test_imresize_equals_an_independent_matlab_imresize(scale: Fraction, size: tuple[int, int]) -> None:
    height, width = (side // 2 for side in size) if scale > 3 else size
    image = photograph_like(height, width)
    ours = imresize_uint8(image, scale).astype(np.int16)
    theirs = matlab_imresize(image, float(scale)).astype(np.int16)
    assert ours.shape == theirs.shape == (math.ceil(height * scale), math.ceil(width * scale), 3)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() >= 0.9999


@pytest.mark.parametrize("scale", [Fraction(3, 2), Fraction(2, 3), Fraction(5, 7)], ids=str)
def test_imresize_by_a_fraction_equals_an_independent_matlab_imresize(scale: Fraction) -> None:
    image = photograph_like(115, 87)
    difference = imresize_uint8(image, scale).astype(np.int16) - matlab_imresize(image, float(scale))
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() >= 0.9999


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 40)], ids=str)
def test_imresize_mirrors_images_smaller_than_the_kernel(scale: Fraction, size: tuple[int, int]) -> None:
    image = photograph_like(*size)
    assert np.abs(imresize_uint8(image, scale).astype(np.int16) - matlab_imresize(image, float(scale))).max() <= 1


def test_imresize_of_floats_is_neither_rounded_nor_clipped() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[..., 4:] = 1
    resized = imresize(image, 4)
    expected = matlab_weights(8, 4.0) @ image[0, 0].numpy() @ matlab_weights(8, 4.0).T
    np.testing.assert_allclose(resized[0, 0].numpy(), expected, atol=1e-12)
    assert resized.min() < 0
    assert resized.max() > 1


def test_imresize_gives_the_same_whatever_the_memory_layout() -> None:
    image = torch.from_numpy(photograph_like(61, 43)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(imresize(image.contiguous(), 0.25), imresize(channels_last, 0.25))


def test_imresize_leaves_a_constant_image_constant() -> None:
    image = np.full((37, 29, 3), 201, np.uint8)
    for scale in SCALES:
        assert (imresize_uint8(image, scale) == 201).all()


@pytest.mark.parametrize("scale", [0, -2, 0.123456789])
def test_imresize_refuses_a_scale_that_is_no_small_fraction(scale: float) -> None:
    with pytest.raises(RequestError, match="scale="):
        imresize_uint8(np.zeros((8, 8, 3), np.uint8), scale)
