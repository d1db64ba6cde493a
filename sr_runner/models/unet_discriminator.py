"""The discriminator of Real-ESRGAN (Wang et al., ICCVW 2021): a U-Net with spectral normalisation."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from sr_runner.models.layers import check_filters

SLOPE = 0.2
HALVINGS = 3


class UNetDiscriminator(nn.Module):
    """Which pixels are a photograph's? N x 3 x P x P RGB in [0, 1] -> N x 1 x P x P logits, high for photographs.

    Spectral normalisation (Miyato et al. 2018) estimates the norm of a kernel by one step of power iteration per pass
    in training; the vectors are buffers, and so part of a checkpoint. With 64 filters it has 4,376,897 parameters.

    Args:
        num_filters: channels of the first and the last convolutions; those in the middle have eight times as many.

    Raises:
        RequestError: an argument is out of bounds.
    """

    def __init__(self, *, num_filters: int = 64) -> None:
        super().__init__()
        check_filters(num_filters)
        widths = [num_filters * 2**level for level in range(HALVINGS + 1)]
        self.head = nn.Conv2d(3, num_filters, 3, padding=1)
        levels = [*pairwise(widths)]
        self.down = nn.ModuleList(_conv(fewer, more, 4, stride=2) for fewer, more in levels)
        self.up = nn.ModuleList(_conv(more, fewer, 3) for fewer, more in reversed(levels))
        self.body = nn.ModuleList(_conv(num_filters, num_filters, 3) for _ in range(2))
        self.tail = nn.Conv2d(num_filters, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        if any(size % 2**HALVINGS for size in images.shape[-2:]):
            size = " x ".join(map(str, images.shape[-2:]))
            raise ValueError(f"patches of {size} pixels: expected a multiple of {2**HALVINGS}")
        features = [F.leaky_relu(self.head(images), SLOPE)]
        for down in self.down:
            features.append(F.leaky_relu(down(features[-1]), SLOPE))
        x = features.pop()
        for up in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(up(x), SLOPE) + features.pop()
        for conv in self.body:
            x = F.leaky_relu(conv(x), SLOPE)
        logits: Tensor = self.tail(x)
        return logits


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False))
