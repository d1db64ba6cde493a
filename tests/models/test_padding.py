"""Networks that need a multiple of something are trained and used on any size."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import upscale_tiled
from torch import Tensor, nn
from torch.nn import functional as F

import sr_runner
from sr_runner.errors import RequestError
from sr_runner.inference.ensemble import self_ensemble
from sr_runner.models.padding import grid_of, take_any_size
from sr_runner.objectives import Learner, PixelObjective
from sr_runner.weights import export, spandrel_network


class Windowed(nn.Module):
    """Adds to each pixel the mean of its window of 4 x 4, and refuses an image that has no whole number of them."""

    multiple_of = 4

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale, self.mix = scale, nn.Conv2d(3, 3 * scale**2, 1)

    def forward(self, lr: Tensor) -> Tensor:
        if lr.shape[-2] % 4 or lr.shape[-1] % 4:
            raise ValueError(f"{tuple(lr.shape)} are no windows")
        means = F.avg_pool2d(lr, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
        return F.pixel_shuffle(self.mix(lr + means), self.scale)


def windowed() -> Windowed:
    torch.manual_seed(0)
    network = Windowed().double()
    take_any_size(network)
    return network


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(1, 20), overlap=st.integers(0, 6))
def test_tiles_have_the_windows_of_the_whole_image_whatever_its_size(
    height: int, width: int, tile: int, overlap: int
) -> None:
    network, lr = windowed(), torch.rand(1, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        tiled = upscale_tiled(network, lr, scale=2, tile=tile, overlap=overlap, grid=grid_of(network))
        torch.testing.assert_close(tiled, network(lr), rtol=0, atol=1e-12)


def test_without_the_grid_there_would_be_seams_and_an_ensemble_of_tiles_has_none() -> None:
    network, lr = windowed(), torch.rand(1, 3, 16, 30, dtype=torch.float64)

    def tiled(image: Tensor, grid: int = 4) -> Tensor:
        return upscale_tiled(network, image, scale=2, tile=6, overlap=1, grid=grid)

    with torch.no_grad():
        assert not torch.allclose(tiled(lr, grid=1), network(lr), atol=1e-3)
        torch.testing.assert_close(self_ensemble(tiled)(lr), self_ensemble(network)(lr))


def test_what_is_padded_is_cropped_and_a_whole_number_of_windows_is_left_as_it_is() -> None:
    network, plain, lr = windowed(), windowed(), torch.rand(2, 3, 7, 9, dtype=torch.float64)
    del plain.forward
    padded = F.pad(lr, (0, 3, 0, 1), "reflect")
    assert torch.equal(network(lr), plain(padded)[..., :14, :18]) and torch.equal(network(padded), plain(padded))
    with pytest.raises(ValueError, match="no windows"):
        plain(lr)


def test_a_windowed_network_trains_on_patches_of_any_size_and_so_does_its_copy() -> None:
    torch.manual_seed(0)
    learner = Learner(Windowed(), partial(torch.optim.SGD, lr=0.1), None)
    lr, hr = torch.rand(2, 3, 13, 13), torch.rand(2, 3, 26, 26)
    before = copy.deepcopy(learner.network)
    PixelObjective({"pixel": nn.L1Loss()}).train_step({"model": learner}, [(lr, hr)], measure=False)
    assert list(learner.network.state_dict()) == ["mix.weight", "mix.bias"]
    assert not torch.equal(before(lr), learner.network(lr))


def test_a_windowed_network_of_ones_own_enlarges_any_image_out_of_its_file(tmp_path: Path) -> None:
    path = export(Windowed(), tmp_path / "own.safetensors")
    network = sr_runner.load_model(path, network=Windowed)
    image = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    whole = sr_runner.upscale(network, image)
    assert whole.shape == (74, 102, 3)
    assert np.array_equal(sr_runner.upscale(network, image, tile=10, overlap=0), whole)


@pytest.mark.parametrize("value", [0, 2.0, True, "8"])
def test_a_multiple_that_is_none_is_refused(value: object) -> None:
    network = Windowed()
    network.multiple_of = value  # type: ignore[assignment]
    with pytest.raises(RequestError, match=r"Windowed\.multiple_of is .* expected a whole number of LR pixels"):
        take_any_size(network)


def test_tiles_of_a_transformer_begin_where_its_windows_do() -> None:
    small = {"img_size": 24, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 12}
    network = spandrel_network(scale=2, architecture="SwinIR", arguments=small | {"upsampler": "pixelshuffle"})
    assert grid_of(network) == 12 and grid_of(nn.Conv2d(3, 3, 1)) == 1
