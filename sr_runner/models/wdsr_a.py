"""WDSR-A: wide activation by a 3x3 convolution to more channels before the ReLU and a 3x3 back after it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.models.wdsr import WDSR, weight_norm_conv2d


class WDSRA(WDSR):
    """WDSR-A: N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    Args:
        scale: 2, 3, 4 or 8.
        num_filters: channels between the blocks.
        num_res_blocks: residual blocks; the paper's 1.19M model has 16.
        res_block_expansion: channels before a block's ReLU, in multiples of `num_filters`.
        res_block_scaling: factor on the output of a block before it is added.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    TITLE: ClassVar[str] = "WDSR-A"

    def __init__(
        self,
        *,
        scale: int,
        num_filters: int = 32,
        num_res_blocks: int = 8,
        res_block_expansion: int = 4,
        res_block_scaling: float = 1.0,
        initialization: str = "torch",
    ) -> None:
        super().__init__(
            lambda scaling: ResBlockA(num_filters, res_block_expansion, scaling, initialization),
            scale=scale,
            num_filters=num_filters,
            num_res_blocks=num_res_blocks,
            res_block_expansion=res_block_expansion,
            res_block_scaling=res_block_scaling,
            initialization=initialization,
        )


class ResBlockA(nn.Module):
    """x + scaling * conv3x3(relu(conv3x3(x))), wide in the middle."""

    def __init__(self, num_filters: int, expansion: int, scaling: float, initialization: str) -> None:
        super().__init__()
        self.scaling = scaling
        self.conv1 = weight_norm_conv2d(num_filters, num_filters * expansion, 3, initialization)
        self.conv2 = weight_norm_conv2d(num_filters * expansion, num_filters, 3, initialization)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu(self.conv1(x), inplace=True))
        return torch.add(x, residual, alpha=self.scaling)
