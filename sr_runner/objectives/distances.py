"""Distances between SR and HR that `torch.nn` does not have. Both are N x C x H x W."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CharbonnierLoss(nn.Module):
    """The mean of sqrt((sr - hr)^2 + eps^2): L1 without its edge at 0 (LapSRN, Lai et al. 2017).

    Raises `ValueError` unless `eps` is above 0.
    """

    def __init__(self, eps: float = 1e-3):
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps={eps}: expected a number above 0")
        self.eps = eps

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return torch.sqrt((sr - hr).square() + self.eps**2).mean()


class FrequencyLoss(nn.Module):
    """L1 between the 2D Fourier transforms, of real and imaginary parts (MIMO-UNet, Cho et al. 2021), here of the half
    that determines the other, without a factor, as light SR networks use it (SAFMN, Sun et al. 2023: 0.05 times)."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        mine, theirs = (torch.view_as_real(torch.fft.rfft2(images)) for images in (sr, hr))
        return F.l1_loss(mine, theirs)
