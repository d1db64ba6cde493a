"""The numbers of NTIRE's efficient track, by hand and as they were published. On meta tensors: nothing is computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sr_runner.errors import RequestError
from sr_runner.evaluation.efficiency import Cost, Stopwatch, count
from sr_runner.models import EDSR, MSRResNet


def test_a_convolution_costs_its_multiplications_and_its_output() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8 x 3 x 9 weights at each of 10 x 10 pixels
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, bias=False),  # 8 x 2 x 9 at each of 4 x 4
        nn.ConvTranspose2d(8, 3, 4, stride=4),  # 8 x 3 x 16 for each pixel of its input; makes 16 x 16
    )
    cost = count(network.to("meta"), lr_size=10)
    assert cost.flops == 8 * 3 * 9 * 100 + 8 * 2 * 9 * 16 + 8 * 3 * 16 * 16
    assert cost.activations == 8 * 100 + 8 * 16 + 3 * 256
    assert (cost.convolutions, cost.parameters) == (3, 8 * 28 + 8 * 18 + 3 * (8 * 16 + 1))


def test_a_linear_layer_is_counted_and_a_module_that_is_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

        def forward(self, lr: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(self.conv(lr)).permute(0, 2, 3, 1))

    cost = count(Twice().to("meta"), lr_size=4)
    assert (cost.flops, cost.activations, cost.convolutions) == (2 * 9 * 16 + 15 * 16, 2 * 48, 2)


def test_msrresnet_has_the_published_activations_and_parameters() -> None:
    # The baseline of AIM 2020, as KAIR measures it: 1.517 M parameters, 292.55 M activations, 166.36 G FLOPs, of which
    # the elements of the activation functions (0.1 %) are not counted any more.
    cost = count(MSRResNet(scale=4).to("meta"))
    assert (cost.parameters, round(cost.activations / 1e6, 2)) == (1_517_571, 292.55)
    assert cost.flops / 1e9 == pytest.approx(166.36, rel=2e-3)


def test_edsr_baseline_has_the_published_multiply_adds() -> None:
    # 1518 K parameters and 114.2 G for an SR image of 1280x720, as papers on light networks give it.
    cost = count(EDSR(scale=4).to("meta"))
    assert round(cost.parameters / 1e3) == 1518
    assert round(cost.flops * (320 * 180) / 256**2 / 1e9, 1) == 114.2


def test_the_score_of_the_baseline_is_e_squared_and_runtime_weighs_most() -> None:
    baseline = Cost(parameters=276_000, flops=16_700_000_000, activations=0, convolutions=0, milliseconds=16.69)
    assert baseline.score == pytest.approx(math.exp(2)) == pytest.approx(7.3891, abs=1e-4)
    half = Cost(138_000, 16_700_000_000, 0, 0, milliseconds=33.38)
    assert half.score == pytest.approx(0.7 * math.exp(4) + 0.15 * math.exp(2) + 0.15 * math.e)
    assert math.isfinite(Cost(10**12, 10**18, 0, 0, milliseconds=1e9).score)


def test_a_network_that_cannot_take_the_image_is_refused_and_keeps_no_hooks() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(7, 3)).to("meta")
    with pytest.raises(RequestError, match="protocol=ntire_esr: the network fails on an LR image of 256x256"):
        count(network)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_runtime_is_the_mean_over_the_images() -> None:
    watch = Stopwatch(lambda lr: lr, nn.Conv2d(3, 3, 1), torch.device("cpu"))
    for _ in range(3):
        watch(torch.zeros(1, 3, 8, 8))
    assert len(watch.seconds) == 3 and watch.milliseconds == pytest.approx(1000 * sum(watch.seconds) / 3)
    assert watch.memory_mib is None
