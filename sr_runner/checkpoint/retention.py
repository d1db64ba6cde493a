"""Which checkpoints stay. Small policies, joined by "any keeps"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sr_runner.config.settings import Retention


@dataclass(frozen=True)
class Info:
    """What retention knows of one checkpoint of an attempt."""

    step: int
    created: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Policy(Protocol):
    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        """The steps to keep among `checkpoints`, which are sorted by step."""


@dataclass(frozen=True)
class LastN:
    """The newest `count`."""

    count: int

    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        return {info.step for info in checkpoints[max(0, len(checkpoints) - self.count) :]}


@dataclass(frozen=True)
class BestN:
    """The best `count` by one metric; of equals the earlier, as an improvement is what counts."""

    count: int
    metric: str = Retention.best_metric
    lower_is_better: bool = False

    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        sign = 1.0 if self.lower_is_better else -1.0
        known = [
            (sign * info.metrics[self.metric], info.step)
            for info in checkpoints
            if self.metric in info.metrics and not math.isnan(info.metrics[self.metric])
        ]
        return {step for _, step in sorted(known)[: self.count]}


@dataclass(frozen=True)
class EverySteps:
    """Those at multiples of `steps`."""

    steps: int

    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        return {info.step for info in checkpoints if info.step % self.steps == 0}


@dataclass(frozen=True)
class EveryMinutes:
    """The first of each interval of `minutes`, by the clock of the machine that wrote them."""

    minutes: float

    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        kept: dict[int, int] = {}
        for info in checkpoints:
            kept.setdefault(int(info.created // (60 * self.minutes)), info.step)
        return set(kept.values())


def doomed(checkpoints: Sequence[Info], policies: Sequence[Policy]) -> list[int]:
    """The steps that no policy keeps. The newest checkpoint always stays: a resume never falls back."""
    ordered = sorted(checkpoints, key=lambda info: info.step)
    if not ordered:
        return []
    kept = {ordered[-1].step}.union(*(policy.keeps(ordered) for policy in policies))
    return [info.step for info in ordered if info.step not in kept]
