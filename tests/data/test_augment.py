"""Samples that are mixed or changed at random."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from sr_runner.data.augment import KINDS, PARTNER, Augment
from sr_runner.errors import RequestError

COUNT, SCALE, PATCH = 400, 2, 10


def pictures(offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    size = COUNT, PATCH * SCALE, PATCH * SCALE, 3
    hr = torch.from_numpy((np.arange(np.prod(size)) * 2654435761 + offset * 977 >> 9).astype(np.uint8).reshape(size))
    return hr[:, ::SCALE, ::SCALE].contiguous(), hr


def made(probabilities: dict[str, float], seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    n = np.arange(1000, 1000 + COUNT)
    return Augment(probabilities)(pictures(), lambda: pictures(1), seed=seed, n=n)


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mixup", "c5fa15e129b0b9d0"), ("cutmix", "2c3d9d65dec143cd"), ("cutblur", "2c48f79548c8616d"),
        ("channel_shuffle", "58c58ef24ceb933d"),
    ],
)  # fmt: skip
def test_samples_are_those_of_every_earlier_release(kind: str, expected: str) -> None:
    """A change of these digests changes the data of every run that augments."""
    assert digest(*made({kind: 0.5})) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_so_many_samples_are_changed_and_the_others_stay(kind: str) -> None:
    lr, hr = made({kind: 0.25})
    changed = (lr != pictures()[0]).flatten(1).any(1)
    assert 0.15 < changed.float().mean() < 0.3  # one in six shuffles keeps the order
    for new, old in zip((lr, hr), pictures(), strict=True):
        assert torch.equal(new[~changed], old[~changed])
    assert torch.equal(hr, pictures()[1]) == (kind == "cutblur")


def test_each_sample_is_changed_in_one_way_at_most_and_more_kinds_do_not_move_the_first() -> None:
    one, both = made({"mixup": 0.3})[0], made({"channel_shuffle": 0.3, "mixup": 0.3})[0]
    mixed = (one != pictures()[0]).flatten(1).any(1)
    assert torch.equal(one[mixed], both[mixed])
    assert (both[~mixed] != pictures()[0][~mixed]).flatten(1).any(1).any()


def test_lr_and_hr_stay_a_pair() -> None:
    """The LR pictures here are every second pixel of the HR ones, which mixing and cutting leave so."""
    for kind in ("mixup", "cutmix", "channel_shuffle"):
        lr, hr = made({kind: 1.0})
        assert torch.equal(lr, hr[:, ::SCALE, ::SCALE]), kind


def test_a_square_is_cut_inside_or_outside() -> None:
    lr, _ = made({"cutmix": 1.0})
    of_other = (lr == pictures(1)[0]).all(3).float().mean((1, 2))
    assert set(of_other.mul(100).round().tolist()) <= {*range(45, 60)}
    edges = (lr == pictures(1)[0]).all(3)[:, 0, 0].float().mean()
    assert 0.2 < edges < 0.8


def test_cutblur_takes_the_mean_of_the_hr_pixels() -> None:
    (lr, _), (old, hr) = made({"cutblur": 1.0}), pictures()
    mean = hr.float().unflatten(2, (PATCH, SCALE)).unflatten(1, (PATCH, SCALE)).mean((2, 4)).round().byte()
    assert ((lr == old) | (lr == mean)).all()
    assert 0.3 < (lr == mean).all(3).float().mean() < 0.7


def test_a_partner_is_asked_for_only_where_one_is_mixed_in() -> None:
    def nobody() -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError

    Augment({"cutblur": 0.5, "channel_shuffle": 0.5})(pictures(), nobody, seed=0, n=np.arange(COUNT))
    assert PARTNER > 10**12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixpu": 0.1}, r"data\.augment\.mixpu: expected mixup, .*mixup'\?"),
        ({"mixup": 2}, r"data\.augment\.mixup=2: expected a number from 0 to 1"),
        ({"mixup": True}, r"data\.augment\.mixup=True"),
        ({"mixup": float("nan")}, r"data\.augment\.mixup=nan"),
        ({"mixup": 0.6, "cutmix": 0.6}, "sum is 1 or less"),
    ],
)
def test_wrong_requests(given: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Augment(given)
