"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A second network that follows the first: `ema = decay * ema + (1 - decay) * weights` after every step.

    Floating-point buffers (BatchNorm's statistics) are averaged like weights, so that the two fit together; integer
    ones are copied. `network` is in evaluation mode.
    """

    def __init__(self, source: nn.Module, decay: float):
        """`decay` in (0, 1)."""
        self.decay = decay
        self.network = copy.deepcopy(source).eval().requires_grad_(False)
        pairs = list(zip(tensors(self.network), tensors(source), strict=True))
        self._averaged = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._copied = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        if self._averaged:
            mine, theirs = (list(side) for side in zip(*self._averaged, strict=True))
            torch._foreach_lerp_(mine, theirs, 1 - self.decay)
        for target, source in self._copied:
            target.copy_(source)


def tensors(network: nn.Module) -> list[torch.Tensor]:
    """Weights and buffers, without gradients."""
    return [*(p.data for p in network.parameters()), *network.buffers()]
