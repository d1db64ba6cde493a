"""The trunk that WDSR-A and WDSR-B share: "Wide Activation for Efficient and Accurate Image Super-Resolution",
Yu et al., 2018. Every convolution is weight normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sr_runner.models.layers import check_arguments, check_initialization, check_number, conv2d, mean_buffer

RGB_RANGE = 2.0
"""Inside, WDSR works on (x - mean) * 2, in the authors' code and krasserm's alike: `(x - mean) / 127.5` on 0..255."""


def weight_norm_conv2d(in_channels: int, out_channels: int, kernel_size: int, initialization: str) -> nn.Module:
    """A convolution whose weight is g v / |v| per output channel. g begins as |v|, so the weight as `conv2d`'s.

    State: `parametrizations.weight.original0` is g (out x 1 x 1 x 1), `.original1` is v, and `bias`.
    """
    layer: nn.Module = weight_norm(conv2d(in_channels, out_channels, kernel_size, initialization))
    return layer


class WDSR(nn.Module):
    """A main branch (head, residual blocks, 3x3 tail) and a 5x5 skip branch, each shuffled to HR, added.

    N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.
    """

    SCALES: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    UPSAMPLER: ClassVar[tuple[str, ...]] = ("tail.", "skip.")
    """State names that belong to one scale and are new when the rest is transferred to another."""
    TITLE: ClassVar[str]

    def __init__(
        self,
        make_block: Callable[[float], nn.Module],
        *,
        scale: int,
        num_filters: int,
        num_res_blocks: int,
        res_block_expansion: int,
        res_block_scaling: float,
        initialization: str,
    ) -> None:
        super().__init__()
        check_arguments(
            self.TITLE,
            scale,
            self.SCALES,
            num_filters=num_filters,
            num_res_blocks=num_res_blocks,
            res_block_expansion=res_block_expansion,
        )
        check_initialization(initialization)
        self.scale, self.num_filters, self.num_res_blocks = scale, num_filters, num_res_blocks
        self.res_block_expansion = res_block_expansion
        self.res_block_scaling = check_number(self.TITLE, "res_block_scaling", res_block_scaling)
        self.register_buffer("mean", mean_buffer(), persistent=False)
        self.mean: Tensor
        self.head = weight_norm_conv2d(3, num_filters, 3, initialization)
        self.body = nn.Sequential(*(make_block(self.res_block_scaling) for _ in range(num_res_blocks)))
        self.tail = weight_norm_conv2d(num_filters, 3 * scale**2, 3, initialization)
        self.skip = weight_norm_conv2d(3, 3 * scale**2, 5, initialization)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, lr: Tensor) -> Tensor:
        x = (lr - self.mean) * RGB_RANGE
        # Each branch is shuffled on its own in the paper; shuffling their sum gives the same values once.
        sr: Tensor = self.shuffle(self.tail(self.body(self.head(x))) + self.skip(x))
        return sr / RGB_RANGE + self.mean

    def hyperparameters(self) -> dict[str, int | float]:
        """The arguments that build this network again; `initialization` is not one, as weights replace it."""
        return {
            "scale": self.scale,
            "num_filters": self.num_filters,
            "num_res_blocks": self.num_res_blocks,
            "res_block_expansion": self.res_block_expansion,
            "res_block_scaling": self.res_block_scaling,
        }
