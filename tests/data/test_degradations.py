from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sr_runner.data import counter
from sr_runner.data.degradations import (
    Blur,
    BsrganBlur,
    BsrganNoise,
    BsrganShrink,
    Chain,
    Degradation,
    Jpeg,
    Noise,
    Resize,
    Shuffled,
    Sinc,
    Sometimes,
    Step,
)
from sr_runner.data.degradations.blur import convolve, cut, gaussian_kernel, sinc_kernel
from sr_runner.data.degradations.canvas import Canvas, Draw
from sr_runner.data.degradations.jpeg import compress
from sr_runner.data.degradations.noise import poisson
from sr_runner.data.degradations.resize import resize
from sr_runner.errors import RequestError
from sr_runner.imresize import imresize_uint8


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    """Pictures with the slow gradients and the edges of photographs."""
    y, x = np.mgrid[:height, :width]
    pictures = []
    for n in range(count):
        waves = [np.sin(x / (5 + n + 2 * c) + n) * np.cos(y / (9 + c)) for c in range(3)]
        pictures.append(np.stack(waves) * 0.3 + 0.5 + 0.15 * ((x // 11 + y // 17) % 2))
    return torch.from_numpy(np.stack(pictures).clip(0, 1).astype(np.float32))


def samples(*n: int) -> npt.NDArray[np.int64]:
    return np.array(n, dtype=np.int64)


def draw(count: int, seed: int = 0) -> Draw:
    return Draw.of(seed, np.arange(count))


def realesrgan() -> Degradation:
    return Degradation(
        [
            Blur(sigma=(0.2, 3)),
            Resize(factor=(0.15, 1.5), probabilities=(0.2, 0.7, 0.1)),
            Noise(sigma=(1, 30), poisson_scale=(0.05, 3)),
            Jpeg(quality=(30, 95)),
            Sometimes(Blur(sigma=(0.2, 1.5)), 0.8),
            Resize(factor=(0.3, 1.2), probabilities=(0.3, 0.4, 0.3), relative_to="lr"),
            Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5)),
            Shuffled([Chain([Resize(factor=1, relative_to="lr"), Sometimes(Sinc(), 0.8)]), Jpeg(quality=(30, 95))]),
        ]
    )


def bsrgan() -> Degradation:
    shrink = Resize(factor=0.5, methods=("area", "bilinear", "bicubic", "matlab"))
    to_lr = Resize(factor=1, relative_to="lr")
    shuffled: list[Step] = [BsrganBlur(), BsrganBlur(), BsrganShrink(), to_lr, BsrganNoise(), Sometimes(Jpeg(), 0.9)]
    return Degradation([Sometimes(shrink, 0.25, at_scales=[4]), Shuffled(shuffled, in_order=(2, 3)), Jpeg()])


PIPELINES = pytest.mark.parametrize("pipeline", [realesrgan(), bsrgan()], ids=["realesrgan", "bsrgan"])


# -- functions of (seed, n) --------------------------------------------------------------------------------------------


@PIPELINES
def test_lr_is_a_function_of_seed_and_n_however_the_batch_is_cut(pipeline: Degradation) -> None:
    hr = smooth(8, 48, 48)
    whole = pipeline(hr, scale=4, seed=5, n=np.arange(100, 108))
    assert whole.shape == (8, 3, 12, 12)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, pipeline(hr, scale=4, seed=5, n=np.arange(100, 108)))
    for cuts in ((0, 1, 8), (0, 3, 4, 8)):
        parts = [pipeline(hr[a:b], scale=4, seed=5, n=np.arange(100 + a, 100 + b)) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("pipeline", "contrasts"),
    [
        (realesrgan(), [[26.968, 33.216, 35.946], [17.112, 29.758, 26.427], [38.500, 41.224, 40.136]]),
        (bsrgan(), [[7.662, 8.081, 11.422], [3.822, 11.713, 9.972], [1.772, 1.923, 1.776]]),
    ],
    ids=["realesrgan", "bsrgan"],
)
def test_degraded_samples_are_those_of_every_earlier_release(
    pipeline: Degradation, contrasts: list[list[float]]
) -> None:
    lr = pipeline(smooth(3, 64, 64), scale=4, seed=11, n=samples(0, 7, 1_000_003))
    # Not to the last bit: what a device's arithmetic rounds otherwise may change a pixel by a level.
    assert np.allclose(lr.double().std(dim=(2, 3)), contrasts, rtol=0.02)


@PIPELINES
def test_other_seeds_and_samples_are_degraded_otherwise(pipeline: Degradation) -> None:
    hr = smooth(1, 48, 48).repeat(12, 1, 1, 1)
    lr = pipeline(hr, scale=4, seed=5, n=np.arange(12))
    assert len({picture.numpy().tobytes() for picture in lr}) == 12
    assert not torch.equal(lr, pipeline(hr, scale=4, seed=6, n=np.arange(12)))


@PIPELINES
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_degraded_pictures_still_show_what_they_showed(pipeline: Degradation, scale: int) -> None:
    hr = smooth(8, 48, 96)
    lr = pipeline(hr, scale=scale, seed=1, n=np.arange(8)).float() / 255
    assert lr.shape == (8, 3, 48 // scale, 96 // scale)
    means = functional.adaptive_avg_pool2d(hr, 3), functional.adaptive_avg_pool2d(lr, 3)
    assert (means[0] - means[1]).abs().mean() < 0.08


def test_the_numbers_drawn_on_the_device_are_those_of_the_counter() -> None:
    canvas = Canvas.of(torch.zeros(2, 3, 4, 5), 1)
    drawn = Draw.of(9, samples(7, 8))
    first, second = drawn.per_pixel(3, canvas)
    key = counter.bits(drawn._key, 3, samples(8)).astype(np.uint64)
    z = key + np.uint64((2 << 48) + (3 << 24) + 4)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    expected = [((int(z[0]) >> shift) % 2**24 + 0.5) / 2**24 for shift in (40, 16)]
    assert [float(first[1, 2, 3, 4]), float(second[1, 2, 3, 4])] == pytest.approx(expected, abs=1e-7)


def test_a_pixels_random_numbers_do_not_depend_on_the_size_of_the_canvas() -> None:
    small, large = (draw(2).normal(0, Canvas.of(torch.zeros(2, 3, *size), 1)) for size in ((9, 7), (20, 31)))
    assert torch.equal(small, large[:, :, :9, :7])


def test_the_numbers_drawn_for_pixels_are_normal_and_independent() -> None:
    normal = draw(4).normal(0, Canvas.of(torch.zeros(4, 3, 128, 128), 1)).double()
    size = normal.numel()
    assert abs(float(normal.mean())) < 4.5 / math.sqrt(size)
    assert float(normal.var()) == pytest.approx(1, abs=4.5 * math.sqrt(2 / size))
    assert float((normal**4).mean()) == pytest.approx(3, abs=4.5 * math.sqrt(96 / size))
    pairs = [(normal[..., 1:], normal[..., :-1]), (normal[..., 1:, :], normal[..., :-1, :])]
    pairs += [(normal[:, 1:], normal[:, :-1]), (normal[1:], normal[:-1])]
    for this, other in pairs:
        assert abs(float((this * other).mean())) < 4.5 / math.sqrt(this.numel())


# -- putting steps together --------------------------------------------------------------------------------------------


class Mark:
    """Appends its digit to the first pixel: what happened, in which order."""

    def __init__(self, digit: int) -> None:
        self.digit = digit

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        return canvas.with_pixels(canvas.pixels * 10 + self.digit)


def history(step: Step, count: int) -> list[str]:
    canvas = step(Canvas.of(torch.zeros(count, 3, 4, 4, dtype=torch.float64), 1), draw(count))
    return [str(int(number)) for number in canvas.pixels[:, 0, 0, 0]]


def test_a_chain_is_in_order_and_sometimes_is_sometimes() -> None:
    outcomes = history(Chain([Mark(1), Sometimes(Mark(2), 0.25), Mark(3)]), 4000)
    assert set(outcomes) == {"13", "123"}
    assert outcomes.count("123") == pytest.approx(1000, abs=130)


def test_sometimes_may_be_for_some_scales_alone() -> None:
    assert set(history(Chain([Mark(1), Sometimes(Mark(2), 1, at_scales=[4])]), 3)) == {"1"}


def test_shuffled_steps_come_in_every_order_and_each_once() -> None:
    outcomes = history(Shuffled([Mark(1), Mark(2), Mark(3)]), 6000)
    assert set(outcomes) == {"123", "132", "213", "231", "312", "321"}
    assert all(outcomes.count(order) == pytest.approx(1000, abs=140) for order in set(outcomes))


def test_shuffled_steps_may_keep_an_order_among_themselves() -> None:
    outcomes = set(history(Shuffled([Mark(1), Mark(2), Mark(3)], in_order=(0, 2)), 500))
    assert outcomes == {"123", "132", "213"}


def test_steps_of_one_kind_draw_numbers_of_their_own() -> None:
    noise = Noise(sigma=(10, 10), gaussian=1, grey=0)
    start = Canvas.of(torch.full((1, 3, 32, 32), 0.5), 1)
    once, twice = (Chain([noise] * steps)(start, draw(1)).pixels.sub(0.5).std() for steps in (1, 2))
    assert float(twice / once) == pytest.approx(math.sqrt(2), rel=0.06)


def test_a_pipeline_must_end_at_the_lr_size() -> None:
    with pytest.raises(RequestError, match="add a Resize with factor=1 and relative_to=lr"):
        Degradation([Blur()])(smooth(1, 16, 16), scale=2, seed=0, n=samples(0))
    with pytest.raises(RequestError, match="steps is empty"):
        Degradation([])


# -- resize ------------------------------------------------------------------------------------------------------------


def on_canvas(pictures: Sequence[torch.Tensor], height: int, width: int) -> Canvas:
    """Pictures of different sizes on one canvas, with rubbish around them."""
    pixels = torch.full((len(pictures), 3, height, width), 77.0)
    for place, picture in zip(pixels, pictures, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    heights, widths = (np.array([picture.shape[axis] for picture in pictures]) for axis in (1, 2))
    return Canvas(pixels, heights, widths, (height, width), (height, width))


PICTURES = [smooth(1, 20, 31)[0], smooth(2, 37, 14)[1], smooth(3, 40, 40)[2]]


@pytest.mark.parametrize("method", ["area", "bilinear", "bicubic"])
def test_pictures_of_different_sizes_are_resized_as_torch_resizes_each(method: str) -> None:
    sizes = [(7, 9), (50, 14), (25, 60)]
    heights, widths = (np.array(sides) for sides in zip(*sizes, strict=True))
    resized = resize(on_canvas(PICTURES, 45, 44), heights, widths, [method] * 3, (50, 60))
    for picture, (height, width), ours in zip(PICTURES, sizes, resized.pixels, strict=True):
        options: dict[str, Any] = {} if method == "area" else {"align_corners": False}
        theirs = functional.interpolate(picture[None], size=(height, width), mode=method, **options)[0]
        torch.testing.assert_close(ours[:, :height, :width], theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_method_matlab_is_imresize(scale: int) -> None:
    size = 12 * scale
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    hr = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    pipeline = Degradation([Resize(factor=1, relative_to="lr", methods=["matlab"])])
    lr = pipeline(hr, scale=scale, seed=0, n=samples(0))[0].permute(1, 2, 0).numpy()
    difference = lr.astype(int) - imresize_uint8(image, Fraction(1, scale))
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99  # ties, in float32


def test_factors_are_drawn_from_their_range_up_down_or_keep() -> None:
    canvas = Canvas.of(torch.zeros(1500, 3, 100, 1), 1)
    step = Resize(factor=(0.5, 1.5), probabilities=(0.2, 0.7, 0.1), methods=["bilinear"])
    heights = step(canvas, draw(1500)).heights
    assert (heights.min(), heights.max()) == (50, 149)
    assert (heights == 100).mean() == pytest.approx(0.1, abs=0.04)
    assert (heights < 100).mean() == pytest.approx(0.7, abs=0.05)


# -- blur --------------------------------------------------------------------------------------------------------------


def test_pictures_of_different_sizes_are_blurred_as_torch_blurs_each_mirrored() -> None:
    kernels = torch.rand(3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blurred = convolve(on_canvas(PICTURES, 45, 44), kernels).pixels
    for picture, kernel, ours in zip(PICTURES, kernels, blurred, strict=True):
        padded = functional.pad(picture[None], (3, 3, 3, 3), mode="reflect")
        weights = kernel.flip(0, 1).float().expand(3, 1, 7, 7)
        theirs = functional.conv2d(padded, weights, groups=3)[0]
        torch.testing.assert_close(ours[:, : picture.shape[1], : picture.shape[2]], theirs, atol=2e-5, rtol=1e-5)


def test_a_picture_smaller_than_the_kernel_is_mirrored_more_than_once() -> None:
    tiny = Canvas.of(torch.full((1, 3, 2, 1), 0.25), 1)
    assert torch.allclose(Blur()(tiny, draw(1)).pixels, tiny.pixels, atol=1e-6)


def test_kernels_sum_to_one_and_have_the_widths_asked_for() -> None:
    first, second, angle = np.array([2.0, 1.0]), np.array([2.0, 3.0]), np.array([0.0, math.pi / 2])
    kernels = cut(gaussian_kernel(first, second, radius=15, angle=angle))
    side = torch.arange(-15, 16, dtype=torch.float64)
    across, down = (kernels * side**2).sum((1, 2)), (kernels * side[:, None] ** 2).sum((1, 2))
    assert kernels.sum((1, 2)).tolist() == pytest.approx([1, 1])
    assert across.sqrt().tolist() == pytest.approx([2, 3], rel=1e-3)  # turned by a right angle
    assert down.sqrt().tolist() == pytest.approx([2, 1], rel=1e-3)


def test_a_sinc_kernel_lets_low_frequencies_pass_and_stops_high_ones() -> None:
    kernel = sinc_kernel(np.array([math.pi / 2]), np.array([10]), 10)[0]
    response = torch.fft.fft2(kernel, s=(64, 64)).abs()
    assert float(response[0, 0]) == pytest.approx(1)
    assert float(response[0, 8]) == pytest.approx(1, abs=0.1)
    assert float(response[0, 24]) < 0.1


def test_blur_leaves_the_mean_and_takes_the_contrast() -> None:
    canvas = Canvas.of(smooth(1, 64, 64).repeat(50, 1, 1, 1), 1)
    for step in (Blur(sinc=0), BsrganBlur(), Sinc()):
        blurred = step(canvas, draw(50)).pixels
        assert (blurred.mean((1, 2, 3)) - canvas.pixels.mean((1, 2, 3))).abs().max() < 0.02
        if not isinstance(step, Sinc):  # which rings
            assert blurred.diff(dim=3).abs().mean() < canvas.pixels.diff(dim=3).abs().mean()


def test_taking_every_kth_pixel_keeps_the_picture_in_place() -> None:
    ramp = torch.linspace(0.2, 0.8, 64).expand(40, 3, 64, 64)
    canvas = Canvas(ramp, np.full(40, 64), np.full(40, 64), (64, 64), (16, 16))
    shrunk = BsrganShrink(probability=0)(canvas, draw(40))
    assert (shrunk.heights == 16).all()
    expected = functional.interpolate(ramp, size=(16, 16), mode="area")[..., 3:-3]
    torch.testing.assert_close(shrunk.pixels[:, :, 3:13, 3:13], expected[:, :, 3:13], atol=2e-4, rtol=0)


# -- noise -------------------------------------------------------------------------------------------------------------


def test_gaussian_noise_has_the_strength_asked_for_and_may_be_grey() -> None:
    canvas = Canvas.of(torch.full((60, 3, 64, 64), 0.5), 1)
    noise = Noise(sigma=(10, 10), gaussian=1, grey=0.5)(canvas, draw(60)).pixels - 0.5
    assert float(noise.std()) == pytest.approx(10 / 255, rel=0.01)
    grey = (noise[:, 0] == noise[:, 1]).all(dim=(1, 2))
    assert 15 < int(grey.sum()) < 45
    coloured = noise[~grey]
    assert abs(float((coloured[:, 0] * coloured[:, 1]).mean() / coloured.var())) < 0.02


@pytest.mark.parametrize("mean", [0.0, 0.3, 3.9, 4.1, 12.5, 60.0, 255.0])
def test_poisson_numbers_follow_the_poisson_distribution(mean: float) -> None:
    size = 400_000
    uniform = [torch.from_numpy(counter.uniform(counter.bits(1, name, np.arange(size)))).clamp(1e-9) for name in (0, 1)]
    drawn = poisson(torch.full((size,), mean, dtype=torch.float64), *uniform).numpy()
    assert (drawn == np.round(drawn)).all()
    assert drawn.min() >= 0
    exact = np.random.default_rng(0).poisson(mean, size)
    highest = int(max(drawn.max(), exact.max())) + 1
    ours, theirs = (np.cumsum(np.bincount(values.astype(int), minlength=highest)) / size for values in (drawn, exact))
    assert np.abs(ours - theirs).max() < 0.006  # two samples of this size differ by 0.004 in one case of 100


def test_poisson_noise_is_stronger_where_it_is_brighter() -> None:
    canvas = Canvas.of(torch.linspace(0.05, 0.75, 256).expand(4, 3, 64, 256), 1)
    noise = Noise(poisson_scale=(1, 1), gaussian=0, grey=0)(canvas, draw(4)).pixels - canvas.pixels
    dark, bright = noise[..., 20:40].std(), noise[..., 216:236].std()
    expected = math.sqrt((0.05 + 0.7 * 226 / 255) / (0.05 + 0.7 * 30 / 255))
    assert float(bright / dark) == pytest.approx(expected, rel=0.05)


def test_poisson_noise_counts_the_grey_levels_of_the_picture_alone() -> None:
    """255 photons where a picture has 129 to 256 grey levels; what lies beside it on the canvas has none."""
    picture = torch.linspace(0.3, 0.301, 64).expand(3, 64, 64)  # one grey level: one photon, strong noise
    alone = Noise(poisson_scale=(1, 1), gaussian=0, grey=0)(on_canvas([picture], 64, 64), draw(1)).pixels
    beside = Noise(poisson_scale=(1, 1), gaussian=0, grey=0)(on_canvas([picture], 80, 90), draw(1)).pixels
    assert torch.equal(beside[..., :64, :64], alone)


def test_bsrgan_noise_is_of_three_kinds() -> None:
    canvas = Canvas.of(torch.full((400, 3, 32, 32), 0.5), 1)
    noise = (BsrganNoise(sigma=(10, 10))(canvas, draw(400)).pixels - 0.5).flatten(2)
    correlation = [float(np.corrcoef(picture[:2])[0, 1]) for picture in noise.numpy()]
    grey, independent = sum(c > 0.999 for c in correlation), sum(abs(c) < 0.12 for c in correlation)
    assert grey == pytest.approx(160, abs=45)
    assert independent == pytest.approx(180, abs=50)
    assert 400 - grey - independent > 20


# -- JPEG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_jpeg_is_what_libjpeg_makes_of_the_picture(quality: int) -> None:
    pictures = [smooth(1, 50, 70)[0], smooth(1, 33, 47)[0]]
    ours = compress(on_canvas(pictures, 60, 75), np.full(2, float(quality))).pixels
    for picture, compressed in zip(pictures, ours, strict=True):
        image = picture.mul(255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        theirs = np.asarray(Image.open(buffer)).astype(np.float64)
        mine = compressed[:, : image.shape[0], : image.shape[1]].mul(255).permute(1, 2, 0).numpy()
        # What differs is where libjpeg's integer arithmetic rounds a coefficient the other way.
        assert np.abs(mine - theirs).mean() < min(2.0, 0.1 * np.abs(theirs - image).mean() + 1.3)


def test_jpeg_quality_is_drawn_from_its_range() -> None:
    pictures = smooth(1, 32, 32).repeat(30, 1, 1, 1)
    errors = (Jpeg(quality=(5, 100))(Canvas.of(pictures, 1), draw(30)).pixels - pictures).abs().mean((1, 2, 3))
    assert float(errors.min()) < 0.01 < 0.02 < float(errors.max())


# -- wrong parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(sigma=(3, 1)), r"sigma=\[3, 1\]: expected \[low, high\]"),
        (lambda: Blur(sizes=(7, 20)), r"sizes=\[7, 20\]: expected .*odd"),
        (lambda: Blur(kinds=(1, 2)), "six weights"),
        (lambda: Resize(factor=(0, 1)), r"factor=\[0, 1\]"),
        (lambda: Resize(factor=1, methods=["lanczos"]), "'lanczos' is not one of area, bilinear, bicubic, matlab"),
        (lambda: Resize(factor=1, relative_to="gt"), "expected current, hr or lr"),
        (lambda: Resize(factor=1, probabilities=(1, 2)), "three weights"),
        (lambda: Jpeg(quality=(0, 50)), "quality="),
        (lambda: Noise(grey=1.5), "grey=1.5: expected a number from 0 to 1"),
        (lambda: Sometimes(Blur(), 2), "probability=2"),
        (lambda: Shuffled([Blur()], in_order=(1,)), "in_order"),
    ],
)
def test_wrong_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()
