"""SRResNet, the generator of SRGAN: "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network", Ledig et al., CVPR 2017, as krasserm/super-resolution builds it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sr_runner.models.layers import Network, Residual, conv2d, prelu, upsampling_factors

BATCH_NORM_EPS = 1e-3
BLOCK_MOMENTUM = 0.2
BODY_MOMENTUM = 0.01
"""Keras' `epsilon` and `momentum` (0.8 in the blocks, 0.99 after them), the latter in torch's sense (1 - momentum)."""


class SRResNet(Network):
    """SRResNet: N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), inside [0, 1] by its tanh.

    Inside, the input is used as it is, without a mean shift; the output is (tanh + 1) / 2. BatchNorm makes a training
    step depend on the whole batch and keeps running statistics as buffers, which evaluation uses.

    Args:
        scale: 4 as in the paper; 2, 3 and 8 by the same upsampling blocks.
        num_filters: channels of every hidden layer.
        num_res_blocks: residual blocks (convolution, BatchNorm, PReLU, convolution, BatchNorm) of the body.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d` and `layers.prelu`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    TITLE = "SRResNet"

    def __init__(
        self,
        *,
        scale: int,
        num_filters: int = 64,
        num_res_blocks: int = 16,
        initialization: str = "torch",
    ) -> None:
        super().__init__()
        self.keep(scale, initialization, num_filters=num_filters, num_res_blocks=num_res_blocks)
        self.head = conv2d(3, num_filters, 9, initialization)
        self.head_act = prelu(num_filters, initialization)
        self.body = nn.Sequential(
            *(batch_norm_res_block(num_filters, initialization) for _ in range(num_res_blocks)),
            conv2d(num_filters, num_filters, 3, initialization),
            batch_norm(num_filters, BODY_MOMENTUM),
        )
        self.upsampler = nn.Sequential(
            *(upsample_block(num_filters, factor, initialization) for factor in upsampling_factors(scale))
        )
        self.tail = conv2d(num_filters, 3, 9, initialization)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head_act(self.head(lr))
        x = x + self.body(x)
        sr: Tensor = self.tail(self.upsampler(x))
        # At least fp32, also under autocast: in bf16 the sum with 1 has too few steps for 8-bit images.
        return (torch.tanh(sr.to(torch.promote_types(sr.dtype, torch.float32))) + 1) / 2


def batch_norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    """BatchNorm with Keras' epsilon; `momentum` is the weight of the new batch, as torch has it."""
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=momentum)


def batch_norm_res_block(num_filters: int, initialization: str) -> Residual:
    """x + bn(conv(prelu(bn(conv(x)))))."""
    return Residual(
        1.0,
        conv1=conv2d(num_filters, num_filters, 3, initialization),
        bn1=batch_norm(num_filters, BLOCK_MOMENTUM),
        act=prelu(num_filters, initialization),
        conv2=conv2d(num_filters, num_filters, 3, initialization),
        bn2=batch_norm(num_filters, BLOCK_MOMENTUM),
    )


def upsample_block(num_filters: int, factor: int, initialization: str) -> nn.Sequential:
    """prelu(pixel_shuffle(conv(x)))."""
    layers: dict[str, nn.Module] = {
        "conv": conv2d(num_filters, num_filters * factor**2, 3, initialization),
        "shuffle": nn.PixelShuffle(factor),
        "act": prelu(num_filters, initialization),
    }
    return nn.Sequential(OrderedDict(layers))
