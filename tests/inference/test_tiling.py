from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import upscale_tiled
from torch import Tensor, nn

from sr_runner.errors import RequestError
from sr_runner.inference.tiling import Interrupted, upscale_image, windows


def nearest(lr: Tensor) -> Tensor:
    return lr.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


class Blur(nn.Module):
    """Three 3x3 convolutions and a shuffle: the receptive field reaches 3 LR pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        )

    def forward(self, lr: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.layers(lr), 2)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.integers(1, 20),
    overlap=st.integers(0, 6),
)
def test_tiles_cover_every_pixel_once_whatever_the_sizes(height: int, width: int, tile: int, overlap: int) -> None:
    lr = torch.arange(3 * height * width, dtype=torch.float32).reshape(1, 3, height, width)
    assert torch.equal(upscale_tiled(nearest, lr, scale=2, tile=tile, overlap=overlap), nearest(lr))


@settings(max_examples=12, deadline=None)
@given(height=st.integers(4, 40), width=st.integers(4, 40), tile=st.integers(1, 16), seed=st.integers(0, 9))
def test_tiles_are_seamless_where_the_overlap_covers_the_receptive_field(
    height: int, width: int, tile: int, seed: int
) -> None:
    torch.manual_seed(seed)
    network = Blur().double()
    lr = torch.rand(1, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        tiled = upscale_tiled(network, lr, scale=2, tile=tile, overlap=3)
        torch.testing.assert_close(tiled, network(lr), rtol=0, atol=1e-12)


def test_without_overlap_there_would_be_seams() -> None:
    torch.manual_seed(0)
    network, lr = Blur(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(upscale_tiled(network, lr, scale=2, tile=8, overlap=0), network(lr), atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 500), tile=st.integers(1, 100), overlap=st.integers(0, 50))
def test_windows_have_one_length_and_all_the_context_that_the_image_has(length: int, tile: int, overlap: int) -> None:
    cut = windows(length, tile, overlap)
    assert [w.first for w in cut] == [0, *(w.last for w in cut[:-1])] and cut[-1].last == length
    assert len({w.stop - w.start for w in cut}) == 1
    for window in cut:
        assert window.last > window.first
        assert window.start <= max(0, window.first - overlap)
        assert window.stop >= min(length, window.last + overlap)
        assert window.stop - window.start <= tile + 2 * overlap


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 500), tile=st.integers(1, 100), overlap=st.integers(0, 50), grid=st.integers(2, 17))
def test_windows_on_a_grid_begin_at_its_multiples_and_keep_their_context(
    length: int, tile: int, overlap: int, grid: int
) -> None:
    cut = windows(length, tile, overlap, grid)
    assert [w.first for w in cut] == [0, *(w.last for w in cut[:-1])] and cut[-1].last == length
    for window in cut:
        assert window.start % grid == window.first % grid == 0 and window.last > window.first
        assert window.stop == length or window.stop % grid == 0
        assert window.start <= max(0, window.first - overlap) and window.stop >= min(length, window.last + overlap)
        assert window.stop - window.start <= max(tile, grid) + 2 * (overlap + grid)


def test_the_network_never_sees_more_than_a_tile_with_its_overlap() -> None:
    seen: set[tuple[int, ...]] = set()

    def network(lr: Tensor) -> Tensor:
        seen.add(tuple(lr.shape))
        return nearest(lr)

    upscale_tiled(network, torch.rand(1, 3, 100, 333), scale=2, tile=24, overlap=4)
    assert seen == {(1, 3, 32, 32)}


def test_an_image_within_the_budget_of_one_tile_is_done_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def network(lr: Tensor) -> Tensor:
        seen.append(tuple(lr.shape))
        return nearest(lr)

    upscale_tiled(network, torch.rand(1, 3, 20, 50), scale=2, tile=24, overlap=4)
    assert seen == [(1, 3, 20, 50)]


def test_stopping_between_tiles_raises_interrupted() -> None:
    count = 0

    def network(lr: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return nearest(lr)

    with pytest.raises(Interrupted):
        upscale_tiled(network, torch.rand(1, 3, 64, 64), scale=2, tile=8, overlap=2, should_stop=lambda: count == 3)
    assert count == 3


def test_a_network_of_another_scale_is_refused() -> None:
    with pytest.raises(RequestError, match=r"scale=4: the network made \(1, 3, 16, 16\)"):
        upscale_tiled(nearest, torch.rand(1, 3, 8, 8), scale=4)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 4), (16, -1)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(RequestError, match=f"tile={tile}"):
        upscale_tiled(nearest, torch.rand(1, 3, 8, 8), scale=2, tile=tile, overlap=overlap)


def test_an_image_of_bytes_comes_back_clipped_and_rounded() -> None:
    def network(lr: Tensor) -> Tensor:
        return nearest(lr) * 1.5 - 0.1

    lr = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    exact = lr.repeat(2, 0).repeat(2, 1) * 1.5 - 25.5
    sr = upscale_image(network, lr, scale=2, device="cpu", tile=8, overlap=1)
    assert sr.dtype == np.uint8
    assert np.abs(sr - exact.clip(0, 255)).max() <= 0.5 + 1e-4
    assert np.array_equal(sr, upscale_image(network, lr, scale=2, device="cpu"))
