"""WDSR: "Wide Activation for Efficient and Accurate Image Super-Resolution", Yu et al., 2018.

Every convolution is weight normalised. WDSR-A widens the activation by a 3x3 convolution to more channels before the
ReLU and a 3x3 back after it; WDSR-B widens it further, made cheap by a linear low-rank convolution: 1x1 up, ReLU, 1x1
down, 3x3.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sr_runner.errors import RequestError
from sr_runner.models.layers import Network, Residual, check_number, conv2d, mean_buffer

RGB_RANGE = 2.0
"""Inside, WDSR works on (x - mean) * 2, in the authors' code and krasserm's alike: `(x - mean) / 127.5` on 0..255."""

LINEAR = 0.8
"""Channels between the 1x1 and the 3x3 convolution that follow WDSR-B's ReLU, as a share of `num_filters`."""


def weight_norm_conv2d(in_channels: int, out_channels: int, kernel_size: int, initialization: str) -> nn.Module:
    """A convolution whose weight is g v / |v| per output channel. g begins as |v|, so the weight as `conv2d`'s.

    State: `parametrizations.weight.original0` is g (out x 1 x 1 x 1), `.original1` is v, and `bias`.
    """
    layer: nn.Module = weight_norm(conv2d(in_channels, out_channels, kernel_size, initialization))
    return layer


class WDSR(Network):
    """A main branch (head, residual blocks, 3x3 tail) and a 5x5 skip branch, each shuffled to HR, added.

    N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    Args:
        scale: 2, 3, 4 or 8.
        num_filters: channels between the blocks; WDSR-B needs at least 2.
        num_res_blocks: residual blocks; the paper's 1.19M WDSR-A has 16.
        res_block_expansion: channels before a block's ReLU, in multiples of `num_filters`.
        res_block_scaling: factor on the output of a block before it is added.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    UPSAMPLER = ("tail.", "skip.")

    def __init__(
        self,
        *,
        scale: int,
        num_filters: int = 32,
        num_res_blocks: int,
        res_block_expansion: int,
        res_block_scaling: float = 1.0,
        initialization: str = "torch",
    ) -> None:
        super().__init__()
        counts = {"num_res_blocks": num_res_blocks, "res_block_expansion": res_block_expansion}
        self.keep(scale, initialization, num_filters=num_filters, **counts)
        self.res_block_scaling = check_number(self.TITLE, "res_block_scaling", res_block_scaling, most=100)
        self.register_buffer("mean", mean_buffer(), persistent=False)
        self.mean: Tensor
        self.head = weight_norm_conv2d(3, num_filters, 3, initialization)
        wide = num_filters * res_block_expansion
        self.body = nn.Sequential(*(self.block(wide, initialization) for _ in range(num_res_blocks)))
        self.tail = weight_norm_conv2d(num_filters, 3 * scale**2, 3, initialization)
        self.skip = weight_norm_conv2d(3, 3 * scale**2, 5, initialization)
        self.shuffle = nn.PixelShuffle(scale)

    def block(self, wide: int, initialization: str) -> Residual:
        """One residual block, with `wide` channels before its ReLU."""
        raise NotImplementedError

    def forward(self, lr: Tensor) -> Tensor:
        x = (lr - self.mean) * RGB_RANGE
        # Each branch is shuffled on its own in the paper; shuffling their sum gives the same values once.
        sr: Tensor = self.shuffle(self.tail(self.body(self.head(x))) + self.skip(x))
        return sr / RGB_RANGE + self.mean


class WDSRA(WDSR):
    """WDSR-A; shapes and arguments as `WDSR`."""

    TITLE = "WDSR-A"

    def block(self, wide: int, initialization: str) -> Residual:
        """x + scaling * conv3x3(relu(conv3x3(x))), wide in the middle."""
        return Residual(
            self.res_block_scaling,
            conv1=weight_norm_conv2d(self.num_filters, wide, 3, initialization),
            relu=nn.ReLU(inplace=True),
            conv2=weight_norm_conv2d(wide, self.num_filters, 3, initialization),
        )


class WDSRB(WDSR):
    """WDSR-B; shapes and arguments as `WDSR`."""

    TITLE = "WDSR-B"

    def block(self, wide: int, initialization: str) -> Residual:
        """x + scaling * conv3x3(conv1x1(relu(conv1x1(x)))), wide before the ReLU, narrow after it."""
        narrow = int(self.num_filters * LINEAR)
        if not narrow:
            raise RequestError("model.num_filters=1: expected at least 2 for WDSR-B, whose blocks keep 0.8 of them")
        return Residual(
            self.res_block_scaling,
            conv1=weight_norm_conv2d(self.num_filters, wide, 1, initialization),
            relu=nn.ReLU(inplace=True),
            conv2=weight_norm_conv2d(wide, narrow, 1, initialization),
            conv3=weight_norm_conv2d(narrow, self.num_filters, 3, initialization),
        )
