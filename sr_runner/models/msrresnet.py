"""MSRResNet: BasicSR's SRResNet without BatchNorm, which predicts what bilinear upsampling lacks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.models.edsr import ResBlock
from sr_runner.models.layers import Network, check_arguments, conv2d, upsampling_factors

SLOPE = 0.1


class MSRResNet(Network):
    """MSRResNet: N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    Nothing is shifted or scaled inside; the bilinearly upsampled input is added at the end. The weights begin small
    (a tenth of Kaiming's, zero biases), so that training starts from bilinear upsampling, as in BasicSR.

    Args:
        scale: 2, 3 or 4.
        num_filters: channels of every hidden layer.
        num_res_blocks: residual blocks of the body.

    Raises:
        RequestError: an argument is out of bounds.
    """

    SCALES: ClassVar[tuple[int, ...]] = (2, 3, 4)
    UPSAMPLER: ClassVar[tuple[str, ...]] = ("upsampler.",)

    def __init__(self, *, scale: int = 4, num_filters: int = 64, num_res_blocks: int = 16) -> None:
        super().__init__()
        check_arguments("MSRResNet", scale, self.SCALES, num_filters=num_filters, num_res_blocks=num_res_blocks)
        self.scale, self.num_filters, self.num_res_blocks = scale, num_filters, num_res_blocks
        self.head = conv2d(3, num_filters, 3)
        self.body = nn.Sequential(*(ResBlock(num_filters, 1.0) for _ in range(num_res_blocks)))
        layers: list[nn.Module] = []
        for factor in upsampling_factors(scale):
            layers += [conv2d(num_filters, num_filters * factor**2, 3), nn.PixelShuffle(factor), nn.LeakyReLU(SLOPE)]
        self.upsampler = nn.Sequential(*layers)
        self.hr_conv = conv2d(num_filters, num_filters, 3)
        self.tail = conv2d(num_filters, 3, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                layer.weight.data.mul_(0.1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # every convolution here has one

    def forward(self, lr: Tensor) -> Tensor:
        x = self.body(F.leaky_relu(self.head(lr), SLOPE))
        x = F.leaky_relu(self.hr_conv(self.upsampler(x)), SLOPE)
        residual: Tensor = self.tail(x)
        return residual + F.interpolate(lr, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
