from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiles import upscale_tiled
from torch import Tensor, nn

from sr_runner.inference import OVERLAP
from sr_runner.inference.tiling import to_unit_range, upscale_image
from sr_runner.models import EDSR, WDSRA, WDSRB, MSRResNet, SRResNet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "edsr": partial(EDSR, scale=4, num_filters=4),
    "edsr_x3": partial(EDSR, scale=3, num_filters=4),
    "edsr_x8": partial(EDSR, scale=8, num_filters=4),
    "wdsr_a": partial(WDSRA, scale=4, num_filters=4, num_res_blocks=16, res_block_expansion=4),
    "wdsr_b": partial(WDSRB, scale=4, num_filters=8, num_res_blocks=32, res_block_expansion=6),
    "srresnet": partial(SRResNet, scale=4, num_filters=4),
    "msrresnet": partial(MSRResNet, scale=4, num_filters=4),
}


def reach(network: nn.Module, scale: int) -> int:
    """How many LR pixels away an input can be that one LR pixel's SR pixels depend on."""
    middle = OVERLAP + 5
    lr = torch.rand(1, 3, 2 * middle + 1, 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    here = slice(middle * scale, (middle + 1) * scale)
    network(lr)[..., here, here].sum().backward()
    assert lr.grad is not None
    rows = lr.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    return int((rows - middle).abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_overlap_covers_the_receptive_field(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    scale = int(network.hyperparameters()["scale"])
    assert 30 <= reach(network, scale) <= OVERLAP


def test_edsr_tile_by_tile_equals_edsr_on_the_whole_image() -> None:
    torch.manual_seed(0)
    network = EDSR(scale=4, num_filters=8, num_res_blocks=2).eval()
    overlap = reach(network.double(), 4)
    assert overlap < 10
    network = network.float()
    lr = torch.rand(1, 3, 61, 75)
    with torch.no_grad():
        whole = network(lr)
        tiled = upscale_tiled(network, lr, scale=4, tile=20, overlap=overlap)
        short = upscale_tiled(network, lr, scale=4, tile=20, overlap=1)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6)
    assert (short - whole).abs().max() > 1e-3


def test_edsr_gives_the_same_bytes_in_tiles_and_whole() -> None:
    torch.manual_seed(0)
    network = EDSR(scale=2, num_filters=8, num_res_blocks=2).eval()
    lr = torch.randint(0, 256, (40, 52, 3), dtype=torch.uint8).numpy()
    with torch.no_grad():
        whole = upscale_image(network, lr, scale=2, device="cpu")
        tiled = upscale_image(network, lr, scale=2, device="cpu", tile=16, overlap=10)
        exact: Tensor = network(to_unit_range(lr, "cpu"))
    rounded_either_way = ((exact * 255) % 1 - 0.5).abs() < 1e-4
    differs = torch.from_numpy(whole != tiled).permute(2, 0, 1)[None]
    assert not (differs & ~rounded_either_way).any()
