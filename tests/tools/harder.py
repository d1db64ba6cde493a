"""A loss that keeps something in a buffer. By itself, since `variants` must not import PyTorch: see `fork_server`."""

from __future__ import annotations

import torch


class Harder(torch.nn.Module):
    """L1 times the number of calls, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls * (sr - hr).abs().mean()
