from __future__ import annotations

import copy

import torch
from torch import nn

from sr_runner.models import WDSRB
from sr_runner.objectives.ema import Ema


def test_weights_and_buffers_are_averaged_and_counters_copied() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema, expected = Ema(network, 0.9), copy.deepcopy(network.state_dict())
    for _ in range(5):
        network(torch.rand(2, 3, 8, 8))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update()
        for name, value in network.state_dict().items():
            expected[name] = expected[name] * 0.9 + value * 0.1 if value.is_floating_point() else value.clone()
    for name, value in ema.network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert ema.network.state_dict()["1.num_batches_tracked"] == 5


def test_a_network_with_weight_norm_can_be_averaged() -> None:
    network = WDSRB(scale=2, num_filters=8, num_res_blocks=1, res_block_expansion=6)
    ema = Ema(network, 0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    ema.update()
    assert ema.network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
