"""What comes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sr_runner.evaluation.metrics import Score
from sr_runner.evaluation.protocol import Evaluation


def psnr_of(metrics: Mapping[str, float]) -> float | None:
    """Mean PSNR in dB of the last evaluation, on all validation images where that was done at the end: what `gain` is
    about. None without one."""
    return metrics.get("final/psnr", metrics.get("valid/psnr"))


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last evaluation's means, `valid/psnr` and so on; `final/psnr` where there are more images than in that."""
    scores: tuple[Score, ...] = ()
    """The last evaluation, image by image: at the end of training on all validation images."""
    bicubic: tuple[Score, ...] = ()
    """The same images enlarged by MATLAB bicubic."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The evaluation of the best `checkpoint.best_metric` on the way, with its `step`."""

    @property
    def gain(self) -> float | None:
        """PSNR over that of bicubic, on the mean of the images, in dB; None without images."""
        means = [Evaluation(list(rows)).mean["psnr"] for rows in (self.scores, self.bicubic) if rows]
        return means[0] - means[1] if len(means) == 2 else None
