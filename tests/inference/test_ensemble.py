from __future__ import annotations

import torch
from tiles import upscale_tiled
from torch import Tensor, nn

from sr_runner.inference.ensemble import self_ensemble


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).double()


def test_a_network_that_does_not_care_for_orientation_is_left_as_it_is() -> None:
    def nearest(lr: Tensor) -> Tensor:
        return lr.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    lr = torch.rand(1, 3, 7, 12)
    torch.testing.assert_close(self_ensemble(nearest)(lr), nearest(lr))


def test_the_ensemble_turns_with_its_image() -> None:
    upscale, lr = self_ensemble(network()), torch.rand(1, 3, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        for turn in range(4):
            torch.testing.assert_close(upscale(lr.rot90(turn, (-2, -1))), upscale(lr).rot90(turn, (-2, -1)))
        torch.testing.assert_close(upscale(lr.flip(-1)), upscale(lr).flip(-1))


def test_all_eight_orientations_are_seen_once() -> None:
    lr, seen = torch.rand(1, 3, 5, 5), []

    def spy(turned: Tensor) -> Tensor:
        seen.append(turned.clone())
        return turned

    torch.testing.assert_close(self_ensemble(spy)(lr), lr)
    assert len(seen) == 8
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 8


def test_tiles_inside_and_outside_of_the_ensemble_agree() -> None:
    plain, lr = network(), torch.rand(1, 3, 30, 20, dtype=torch.float64)

    def tiled(image: Tensor) -> Tensor:
        return upscale_tiled(plain, image, scale=2, tile=8, overlap=2)

    with torch.no_grad():
        outside = upscale_tiled(self_ensemble(plain), lr, scale=2, tile=8, overlap=2)
        torch.testing.assert_close(self_ensemble(tiled)(lr), outside)
