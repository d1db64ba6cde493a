"""One network and the loss between its output and the HR patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sr_runner.errors import RequestError
from sr_runner.objectives.base import MODEL, MicroBatches, TrainedBy
from sr_runner.objectives.learner import Learner
from sr_runner.objectives.losses import Loss, Losses, Row, Term, mean, total


class PixelObjective:
    """Minimises the weighted sum of its terms: `torch.nn.L1Loss`, `torch.nn.MSELoss`, or anyone's of (SR, HR)."""

    def __init__(self, losses: Mapping[str, Term | Loss]):
        """Raises `RequestError` where there is none."""
        if not losses:
            raise RequestError("objective.losses={}: expected a term or more, {pixel: {_target_: torch.nn.L1Loss}}")
        self.losses = Losses(losses)

    @property
    def file_contents(self) -> dict[str, str | None]:
        return self.losses.file_contents

    def networks(self, model: nn.Module, *, patch_size: int) -> dict[str, nn.Module]:
        return {MODEL: model}

    def trained_by(self, name: str) -> TrainedBy:
        return TrainedBy()

    def train_step(
        self, learners: Mapping[str, Learner], batches: MicroBatches, *, measure: bool
    ) -> dict[str, torch.Tensor]:
        model = learners[MODEL]
        rows: list[Row] = []
        for lr, hr in batches:
            terms = self.losses(model(lr), hr, model.autocast)
            loss = total(self.losses.weighted(terms))
            model.backward(loss if len(batches) == 1 else loss / len(batches))
            rows.append({"loss": loss.detach()} | {f"loss/{name}": term.detach() for name, term in terms.items()})
        norm = model.step(measure=measure)
        found = mean(rows)
        if measure and norm is not None:
            found["grad_norm"] = norm
        return found
