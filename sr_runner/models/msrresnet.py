"""MSRResNet: BasicSR's SRResNet without BatchNorm, which predicts what bilinear upsampling lacks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.models.layers import Network, conv2d, res_block, subpixel_upsampler

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

    SCALES = (2, 3, 4)
    TITLE = "MSRResNet"

    def __init__(self, *, scale: int, num_filters: int = 64, num_res_blocks: int = 16) -> None:
        super().__init__()
        self.keep(scale, num_filters=num_filters, num_res_blocks=num_res_blocks)
        self.head = conv2d(3, num_filters, 3)
        self.body = nn.Sequential(*(res_block(num_filters, 1.0, "torch") for _ in range(num_res_blocks)))
        self.upsampler = subpixel_upsampler(num_filters, scale, "torch", nn.LeakyReLU(SLOPE))
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
