"""Validation images, scored with the network in training and with bicubic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sr_runner.data import Pair
from sr_runner.evaluation import Evaluation, Score, bicubic_upscale, evaluate, evaluate_images
from sr_runner.evaluation.protocol import OnImage
from sr_runner.inference.tiling import TILE, Interrupted


@dataclass(frozen=True)
class Final:
    """The evaluation on all validation images at the end of training, where those on the way have fewer."""

    step: int = 0
    """0: there was none."""
    scores: tuple[Score, ...] = ()
    bicubic: tuple[Score, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        return {f"final/{name}": value for name, value in Evaluation(list(self.scores)).mean.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {key: value if key == "step" else rows(value) for key, value in vars(self).items()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Final:
        return cls(int(state.get("step", 0)), scores_of(state.get("scores", ())), scores_of(state.get("bicubic", ())))


def rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Scores as plain data."""
    return [dataclasses.asdict(score) for score in scores]


def scores_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Score, ...]:
    return tuple(Score(**row) for row in rows)


def score_network(
    network: nn.Module,
    pairs: Sequence[Pair],
    *,
    scale: int,
    device: torch.device,
    should_stop: Callable[[], bool],
    on_image: OnImage | None = None,
) -> Evaluation | None:
    """Score `network` on `pairs`, tile by tile, and leave its mode as it was; None where `should_stop` cut it short."""
    training, benchmark = network.training, torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # images differ in size
    network.eval()
    try:
        return evaluate(
            network, pairs, crop=scale, device=device, tile=TILE, on_image=on_image, should_stop=should_stop
        )
    except Interrupted:
        return None
    finally:
        network.train(training)
        torch.backends.cudnn.benchmark = benchmark


def score_bicubic(pairs: Sequence[Pair], scale: int) -> tuple[Score, ...]:
    """The same images enlarged by MATLAB bicubic."""
    return tuple(evaluate_images(pairs, lambda lr: bicubic_upscale(lr, scale=scale), crop=scale).scores)
