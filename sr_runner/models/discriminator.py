"""The discriminator of SRGAN (Ledig et al., CVPR 2017), as krasserm/super-resolution builds it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.errors import RequestError, check_choice
from sr_runner.models.layers import INITIALIZATIONS, Network, check_filters, keras_defaults_
from sr_runner.models.srresnet import BLOCK_MOMENTUM, batch_norm

SLOPE = 0.2
HIDDEN = 1024
WIDTHS = (1, 1, 2, 2, 4, 4, 8, 8)
"""Channels of the eight convolutions in multiples of `num_filters`; every second one has stride 2."""


class Discriminator(Network):
    """Is this patch a photograph? N x 3 x P x P RGB in [0, 1] -> N x 1 logits, high for photographs.

    Logits, where the original ends in a sigmoid: `binary_cross_entropy_with_logits` is the same loss without its
    overflow, and the relativistic and hinge losses need them. Inside, images are in [-1, 1]. At P = 96 it has
    23,565,505 parameters, most of them in the first dense layer, which ties the network to its patch size.

    Args:
        patch_size: P in HR pixels, a multiple of 16.
        num_filters: channels of the first convolution; the last has eight times as many.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    def __init__(self, *, patch_size: int = 96, num_filters: int = 64, initialization: str = "torch") -> None:
        super().__init__()
        if patch_size < 16 or patch_size % 16:
            raise RequestError(
                f"data.patch_size={patch_size}: expected a multiple of 16, such as 96, since the SRGAN discriminator"
                " halves a patch four times"
            )
        check_filters(num_filters)
        check_choice("objective.discriminator.initialization", initialization, INITIALIZATIONS)
        self.patch_size, self.num_filters = patch_size, num_filters
        channels = [3, *(width * num_filters for width in WIDTHS)]
        self.blocks = nn.Sequential(
            *(Block(channels[i], channels[i + 1], stride=1 + i % 2, norm=i > 0) for i in range(len(WIDTHS)))
        )
        self.dense1 = nn.Linear(channels[-1] * (patch_size // 16) ** 2, HIDDEN)
        self.dense2 = nn.Linear(HIDDEN, 1)
        if initialization == "keras":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    keras_defaults_(layer)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.patch_size, self.patch_size):
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"the discriminator was built for patches of {self.patch_size} pixels, not {size}")
        features = self.blocks(images * 2 - 1).flatten(1)
        logits: Tensor = self.dense2(F.leaky_relu(self.dense1(features), SLOPE))
        return logits


class Block(nn.Module):
    """leaky_relu(bn(conv(x))); a stride of 2 pads only right and bottom, as TensorFlow does."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1 if stride == 1 else 0)
        self.bn = batch_norm(out_channels, BLOCK_MOMENTUM) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x)
        return F.leaky_relu(x if self.bn is None else self.bn(x), SLOPE)
