"""What the orchestrator asks of an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import nn

from sr_runner.objectives.learner import Learner, OptimizerFactory, SchedulerFactory
from sr_runner.objectives.losses import Losses

MicroBatches: TypeAlias = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""One step's `(lr, hr)` pairs of float tensors in [0, 1], RGB, N x 3 x H x W: several where gradients accumulate."""

MODEL = "model"
"""The learner whose network is the super-resolution network; every objective has it."""

LOSSES = "losses"
"""Beside the networks in a checkpoint: what changes in the losses while they train."""


@dataclass(frozen=True)
class TrainedBy:
    """What updates a network where the objective has a say in it; None: what the config names for all."""

    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None


class Objective(Protocol):
    """A loss and the step that minimises it. It holds no state of the run: that is the learners', and in buffers of its
    losses.

    What an objective may declare for a run's identity (files that its arguments name, keys that do not count) is in
    `sr_runner.config.identity.Part`.
    """

    losses: Losses
    """The terms between SR and HR. Whoever trains brings them to the device."""

    def networks(self, model: nn.Module, *, patch_size: int) -> dict[str, nn.Module]:
        """The networks to train, by name: `model` under `MODEL`, and what the objective brings itself.

        `patch_size` is that of the HR patches. Called once, on the CPU, with the run's seed in force.
        """

    def trained_by(self, name: str) -> TrainedBy:
        """What updates the network `name` of `networks`."""

    def train_step(
        self, learners: Mapping[str, Learner], batches: MicroBatches, *, measure: bool
    ) -> dict[str, torch.Tensor]:
        """Update every learner once. Returns detached scalars on the device: `loss`, its terms before their
        weights as `loss/<term>`, and, where `measure`, `grad_norm`. Must not wait for the device.
        """
