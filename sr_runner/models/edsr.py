"""EDSR: "Enhanced Deep Residual Networks for Single Image Super-Resolution", Lim et al., CVPR workshops 2017."""

from __future__ import annotations

from torch import Tensor, nn

from sr_runner.models.layers import Network, check_number, conv2d, mean_buffer, res_block, subpixel_upsampler


class EDSR(Network):
    """EDSR: N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    The baseline is 16 blocks of 64 filters; the paper's large model 32 blocks of 256 with `res_block_scaling` 0.1.

    Inside, the network works on `(x - mean) * rgb_range` with the mean of DIV2K. Weights belong to the range that they
    were trained with: 255 for EDSR-PyTorch and BasicSR, 2 for krasserm/super-resolution, whose `(x - mean) / 127.5` on
    0..255 is the same thing; `weights.layouts.rescale_range` moves them to another exactly. The range is an argument
    all the same, because it decides how a network learns: an Adam step on a bias weighs 127 times less against
    activations of 0..255 than against those of krasserm's range, while a step on a kernel weighs the same. Where fp16
    activations overflow (65504), a smaller range helps.

    Args:
        scale: 2, 3, 4 or 8.
        num_filters: channels of every hidden layer.
        num_res_blocks: residual blocks (two 3x3 convolutions each) of the body.
        res_block_scaling: factor on the output of a block before it is added, above 0 and at most 100; below 1 it keeps
            wide ones stable.
        rgb_range: see above; above 0 and at most 65535.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    TITLE = "EDSR"

    def __init__(
        self,
        *,
        scale: int,
        num_filters: int = 64,
        num_res_blocks: int = 16,
        res_block_scaling: float = 1.0,
        rgb_range: float = 255.0,
        initialization: str = "torch",
    ) -> None:
        super().__init__()
        self.keep(scale, initialization, num_filters=num_filters, num_res_blocks=num_res_blocks)
        self.res_block_scaling = check_number("EDSR", "res_block_scaling", res_block_scaling, most=100)
        self.rgb_range = check_number("EDSR", "rgb_range", rgb_range, most=65535)
        self.register_buffer("mean", mean_buffer(), persistent=False)
        self.mean: Tensor
        self.head = conv2d(3, num_filters, 3, initialization)
        blocks = [res_block(num_filters, self.res_block_scaling, initialization) for _ in range(num_res_blocks)]
        self.body = nn.Sequential(*blocks, conv2d(num_filters, num_filters, 3, initialization))
        self.upsampler = subpixel_upsampler(num_filters, scale, initialization)
        self.tail = conv2d(num_filters, 3, 3, initialization)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head((lr - self.mean) * self.rgb_range)
        x = x + self.body(x)
        sr: Tensor = self.tail(self.upsampler(x))
        return sr / self.rgb_range + self.mean
