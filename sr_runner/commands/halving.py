"""Asynchronous successive halving (ASHA, Li et al. 2020) whose promoted trials go on from where they paused.

Optuna's own `SuccessiveHalvingPruner` ends trials for good, so that one of the first, which had nobody to be compared
with, takes all the steps, and one that is ended too early is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

STAGE = "stage"
"""The attribute of a trial that holds its `Stage`."""


@dataclass(frozen=True)
class Stage:
    """How far a trial is to be trained, and in which batch of jobs that run side by side."""

    batch: int
    rung: int = 0


def stage_of(trial: FrozenTrial) -> Stage:
    return Stage(**trial.user_attrs[STAGE])


class Halving(optuna.pruners.BasePruner):
    """Pauses each trial at the first evaluation from `min_steps` on. The best of every `factor` that came so far go on
    to `factor` times as many steps, and so on. `min_steps` and `factor` are whole numbers, at least 1 and 2."""

    def __init__(self, min_steps: int, factor: int = 3) -> None:
        for name, value, least in (("min_steps", min_steps, 1), ("factor", factor, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value}: expected a whole number of at least {least}")
        self._min_steps, self._factor = min_steps, factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self.is_at_limit(trial)

    def is_at_limit(self, trial: FrozenTrial) -> bool:
        """Whether it has done the steps of its rung."""
        return trial.last_step is not None and trial.last_step >= self._limit(stage_of(trial).rung)

    def promoted(self, study: optuna.Study, paused: Sequence[FrozenTrial], *, is_last: bool) -> FrozenTrial | None:
        """Of the `paused` trials the one to go on with; None where more have to be compared first.

        `is_last`: no more trials will come. Then the best one is trained to its end, however few there are.
        """
        maximize = study.direction == StudyDirection.MAXIMIZE
        for rung in sorted({stage_of(trial).rung for trial in paused}, reverse=True):
            values = {trial.number: value for trial in study.trials if (value := self._value(trial, rung)) is not None}
            ranked = sorted(values, key=lambda number: -values[number] if maximize else values[number])
            best = ranked[: len(ranked) // self._factor]
            for trial in paused:
                if stage_of(trial).rung == rung and trial.number in best:
                    return trial
        is_done = any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
        if not is_last or is_done or not paused:
            return None
        highest = max(stage_of(trial).rung for trial in paused)
        left = [trial for trial in paused if stage_of(trial).rung == highest]
        return max(left, key=lambda trial: (self._value(trial, highest) or 0.0) * (1 if maximize else -1))

    def _limit(self, rung: int) -> int:
        return self._min_steps * self._factor**rung  # type: ignore[no-any-return]

    def _value(self, trial: FrozenTrial, rung: int) -> float | None:
        """What the trial had come to at the end of `rung`; None where it has not got there, or has no number."""
        there = {step: value for step, value in trial.intermediate_values.items() if step >= self._limit(rung)}
        value: Any = there[min(there)] if there else math.nan
        return float(value) if math.isfinite(value) else None
