"""One network and a loss between its output and the HR patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sr_runner.objectives.base import MODEL, MicroBatches, TrainedBy
from sr_runner.objectives.learner import Learner


class PixelObjective:
    """Minimises `loss(sr, hr)`: `torch.nn.L1Loss`, `torch.nn.MSELoss`, or anyone's module of two batches in [0, 1]."""

    def __init__(self, loss: nn.Module):
        self.loss = loss

    def networks(self, model: nn.Module, *, patch_size: int) -> dict[str, nn.Module]:
        return {MODEL: model}

    def trained_by(self, name: str) -> TrainedBy:
        return TrainedBy()

    def train_step(
        self, learners: Mapping[str, Learner], batches: MicroBatches, *, measure: bool
    ) -> dict[str, torch.Tensor]:
        model, losses = learners[MODEL], []
        for lr, hr in batches:
            loss = self.loss(model(lr), hr)
            model.backward(loss if len(batches) == 1 else loss / len(batches))
            losses.append(loss.detach())
        norm = model.step(measure=measure)
        terms = {"loss": losses[0] if len(losses) == 1 else torch.stack(losses).mean()}
        if measure and norm is not None:
            terms["grad_norm"] = norm
        return terms
