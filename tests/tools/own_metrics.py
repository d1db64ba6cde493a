"""Metrics of one's own, as `trainer.metrics` and sr-eval's `metrics` name them."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn


class Drawing(nn.Module):
    """Has random weights, and draws from every global generator at each image: lower is better."""

    lower_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        drawn = torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        return (self.dropout(self.layer(sr)) - self.layer(hr)).abs().mean() + drawn


class Mean:
    """Of the SR image alone; fails on a black one."""

    def __call__(self, sr: Tensor, hr: Tensor) -> float:
        if sr.max() == 0:
            raise ValueError("it is black")
        return float(sr.mean())


class Offline:
    """Its weights are elsewhere."""

    def __init__(self) -> None:
        raise OSError("no route to host")
