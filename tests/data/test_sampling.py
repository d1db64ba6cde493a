from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_runner.data.sampling import Draws, Sampler

SIZES = np.array([(40, 30), (24, 24), (100, 31), (50, 50), (33, 64), (24, 25), (70, 70)])


def sampler(seed: int = 0, sizes: object = SIZES, *, flip: bool = True, rotate: bool = True) -> Sampler:
    return Sampler(np.asarray(sizes), lr_patch=24, seed=seed, flip=flip, rotate=rotate)


def joined(*parts: Draws) -> Draws:
    return Draws(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


@given(seed=st.integers(0, 2**63), first=st.integers(0, 10**12), counts=st.lists(st.integers(1, 2500), max_size=4))
def test_however_the_stream_is_cut_the_samples_are_the_same(seed: int, first: int, counts: list[int]) -> None:
    starts = np.cumsum([first, *counts])
    parts = [sampler(seed).draw(int(start), count) for start, count in zip(starts, counts, strict=False)]
    if parts:
        for whole, part in zip(sampler(seed).draw(first, sum(counts)), joined(*parts), strict=True):
            assert np.array_equal(whole, part)


@pytest.mark.parametrize("images", [1, 2, 7, 1023, 1024, 3001])
def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(images: int) -> None:
    image = sampler(sizes=np.full((images, 2), 24)).draw(0, 5 * images).image.reshape(5, images)
    assert (np.sort(image, axis=1) == np.arange(images)).all()
    if images > 10:
        assert len({tuple(epoch) for epoch in image.tolist()}) == 5


def test_crops_lie_inside_their_images_and_reach_every_position() -> None:
    draws = sampler().draw(0, 7 * 4000)
    for index, (height, width) in enumerate(SIZES.tolist()):
        chosen = draws.image == index
        assert set(draws.top[chosen].tolist()) == set(range(height - 24 + 1))
        assert set(draws.left[chosen].tolist()) == set(range(width - 24 + 1))


def test_all_eight_orientations_are_equally_likely() -> None:
    draws = sampler().draw(0, 80_000)
    counts = np.bincount(2 * draws.quarter_turns + draws.flip)
    assert len(counts) == 8
    assert np.abs(counts - 10_000).max() < 450


def test_flips_and_rotations_can_be_switched_off_without_moving_the_crops() -> None:
    plain, both = sampler(flip=False, rotate=False).draw(0, 1000), sampler().draw(0, 1000)
    assert not plain.flip.any()
    assert not plain.quarter_turns.any()
    assert np.array_equal(plain.top, both.top)
    assert np.array_equal(plain.image, both.image)


@pytest.mark.parametrize("another", [2, 1 + 2**32, 1 + 2**62])
def test_another_seed_draws_other_samples(another: int) -> None:
    this, other = sampler(1).draw(0, 1000), sampler(another).draw(0, 1000)
    assert (this.image != other.image).mean() > 0.5
    assert (this.top != other.top).mean() > 0.5


def test_samples_are_those_of_every_earlier_release() -> None:
    """A change of this digest changes the data of every run: resumed ones would go on with other samples."""
    draws = sampler(seed=42).draw(123_456_789, 5000)
    digest = hashlib.sha256(np.stack(draws).astype("<i8").tobytes()).hexdigest()
    assert digest == "2bb4d575f0994f65d919adc0dc2d982805c9c25e0e24e6ccf13cf4c89c552cc7"
