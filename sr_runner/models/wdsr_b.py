"""WDSR-B: still wider activation, made cheap by a linear low-rank convolution: 1x1 up, ReLU, 1x1 down, 3x3."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.errors import RequestError
from sr_runner.models.wdsr import WDSR, weight_norm_conv2d

LINEAR = 0.8
"""Channels between the 1x1 and the 3x3 convolution that follow the ReLU, as a share of `num_filters`."""


class WDSRB(WDSR):
    """WDSR-B: N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    Args:
        scale: 2, 3, 4 or 8.
        num_filters: channels between the blocks, at least 2.
        num_res_blocks: residual blocks.
        res_block_expansion: channels before a block's ReLU, in multiples of `num_filters`.
        res_block_scaling: factor on the output of a block before it is added.
        initialization: of the weights before training, `torch` or `keras`: see `layers.conv2d`.

    Raises:
        RequestError: an argument is out of bounds.
    """

    TITLE: ClassVar[str] = "WDSR-B"

    def __init__(
        self,
        *,
        scale: int,
        num_filters: int = 32,
        num_res_blocks: int = 32,
        res_block_expansion: int = 6,
        res_block_scaling: float = 1.0,
        initialization: str = "torch",
    ) -> None:
        if num_filters == 1:
            raise RequestError("model.num_filters=1: WDSR-B needs at least 2, as it keeps 0.8 of them in its blocks")
        super().__init__(
            lambda scaling: ResBlockB(num_filters, res_block_expansion, scaling, initialization),
            scale=scale,
            num_filters=num_filters,
            num_res_blocks=num_res_blocks,
            res_block_expansion=res_block_expansion,
            res_block_scaling=res_block_scaling,
            initialization=initialization,
        )


class ResBlockB(nn.Module):
    """x + scaling * conv3x3(conv1x1(relu(conv1x1(x)))), wide before the ReLU, narrow after it."""

    def __init__(self, num_filters: int, expansion: int, scaling: float, initialization: str) -> None:
        super().__init__()
        self.scaling = scaling
        narrow = int(num_filters * LINEAR)
        self.conv1 = weight_norm_conv2d(num_filters, num_filters * expansion, 1, initialization)
        self.conv2 = weight_norm_conv2d(num_filters * expansion, narrow, 1, initialization)
        self.conv3 = weight_norm_conv2d(narrow, num_filters, 3, initialization)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(self.conv2(F.relu(self.conv1(x), inplace=True)))
        return torch.add(x, residual, alpha=self.scaling)
