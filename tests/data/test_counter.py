from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sr_runner.data import counter

N = 200_000


def draws(seed: int, stream: int, first: int = 0) -> npt.NDArray[np.float64]:
    return counter.uniform(counter.bits(seed, stream, np.arange(first, first + N)))


def chi_square(values: npt.NDArray[np.float64], bins: int) -> float:
    counts = np.bincount((values * bins).astype(np.int64), minlength=bins)
    return float(((counts - N / bins) ** 2 / (N / bins)).sum())


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_numbers_are_uniform(seed: int) -> None:
    values = draws(seed, 3)
    assert values.min() >= 0
    assert values.max() < 1
    assert 800 < chi_square(values, 1000) < 1200  # 999 +- 4.5 standard deviations


def test_the_low_bits_are_as_good_as_the_high_ones() -> None:
    random = counter.bits(5, 0, np.arange(N))
    ones = np.array([((random >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)])
    assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / np.sqrt(N)


@pytest.mark.parametrize(
    ("this", "other"),
    [
        pytest.param(draws(7, 0), draws(7, 0, first=1), id="neighbouring counters"),
        pytest.param(draws(7, 0), draws(8, 0), id="neighbouring seeds"),
        pytest.param(draws(7, 0), draws(7, 1), id="neighbouring streams"),
        pytest.param(draws(1, 0), draws(0, 1), id="seed and stream swapped"),
    ],
)
def test_numbers_of_neighbours_are_independent(this: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> None:
    assert abs(np.corrcoef(this, other)[0, 1]) < 4.5 / np.sqrt(N)
    joint = np.floor(this * 30) / 30 + other / 30  # uniform exactly where the pairs fill the square evenly
    assert 700 < chi_square(joint, 900) < 1100


def test_numbers_do_not_repeat() -> None:
    random = [counter.bits(seed, stream, np.arange(20_000)) for seed in range(4) for stream in range(4)]
    assert len(np.unique(np.concatenate(random))) == 16 * 20_000


def test_any_integer_is_a_seed_and_a_counter() -> None:
    for seed in (-1, 2**64 - 1, 2**63, 10**30):
        assert counter.bits(seed, 0, 0).shape == (1,)
    assert counter.bits(-1, 0, 5) == counter.bits(2**64 - 1, 0, 5)
    assert np.array_equal(counter.bits(3, 1, np.arange(10))[7:], counter.bits(3, 1, np.array([7, 8, 9])))


def test_below_is_uniform_over_exactly_its_range() -> None:
    random = counter.bits(11, 0, np.arange(N))
    for bound in (1, 2, 7, 1000):
        counts = np.bincount(counter.below(random, bound), minlength=bound)
        assert len(counts) == bound
        assert np.abs(counts - N / bound).max() < 5 * np.sqrt(N / bound)
    bounds = np.arange(1, N + 1)
    assert (counter.below(random, bounds) < bounds).all()


def test_the_numbers_are_those_of_every_earlier_release() -> None:
    expected = [11363246369520581519, 8864372728950224559]
    assert counter.bits(0, 0, np.array([0, 1])).tolist() == expected
