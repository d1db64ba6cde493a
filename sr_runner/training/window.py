"""The steps since the last point of `train/*`: their losses, and the time they took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


class Window:
    """Part of the checkpoint, so that a resume splits no mean. The losses stay on the device until they are read."""

    def __init__(self) -> None:
        self._losses: list[dict[str, torch.Tensor]] = []
        self._seconds = self._waited = 0.0
        self._averaged = 0  # the number of steps whose losses are means over all processes by now
        self._clock = time.perf_counter(), 0.0

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._losses)

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """The terms of one step, scalars on the device; `grad_norm`, where it was measured, is not averaged."""
        self._losses.append(terms)

    def clear(self) -> None:
        """Begin a new window."""
        self._losses, self._seconds, self._waited, self._averaged = [], 0.0, 0.0, 0

    # -- time ------------------------------------------------------------------------------------------------------

    def start_clock(self, waited: float) -> None:
        """Time counts from now on. `waited`: the seconds that were spent waiting for input so far, here and below."""
        self._clock = time.perf_counter(), waited

    def read_clock(self, waited: float) -> None:
        """Add the time since the clock was started or read."""
        now = time.perf_counter()
        self._seconds += now - self._clock[0]
        self._waited += waited - self._clock[1]
        self._clock = now, waited

    def exclude(self, seconds: float) -> None:
        """Leave `seconds` (an evaluation) out of the rates."""
        self._clock = self._clock[0] + seconds, self._clock[1]

    # -- values ----------------------------------------------------------------------------------------------------

    def average(self, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace this process's losses by their mean over all processes: `mean` takes a tensor of steps x terms."""
        new, names = self._losses[self._averaged :], self._names
        if new:
            means = mean(torch.stack([torch.stack([terms[name] for name in names]) for terms in new]))
            for terms, row in zip(new, means.unbind(), strict=True):
                terms |= dict(zip(names, row.unbind(), strict=True))
            self._averaged = len(self._losses)

    def metrics(self, samples_per_step: int) -> dict[str, float]:
        """`train/*` of the window: means of the losses that are finite, rates, and the last `grad_norm`."""
        metrics = {f"train/{name}": _mean(self._column(name).tolist()) for name in self._names}
        if "grad_norm" in self._losses[-1]:
            metrics["train/grad_norm"] = float(self._losses[-1]["grad_norm"])
        seconds = max(self._seconds, 1e-9)
        metrics["train/images_per_second"] = samples_per_step * len(self) / seconds
        metrics["train/data_wait"] = min(1.0, self._waited / seconds)
        return metrics

    def not_finite(self) -> dict[int, float]:
        """The losses that are not finite, by the step's position in the window."""
        if not self._losses:
            return {}
        losses = self._column("loss")
        if bool(torch.isfinite(losses).all()):
            return {}
        return {position: loss for position, loss in enumerate(losses.tolist()) if not math.isfinite(loss)}

    def blamed(self, position: int) -> list[str]:
        """The terms of the loss that are not finite at the step of that position."""
        terms = self._losses[position]
        return [name.partition("/")[2] for name in terms if "/" in name and not math.isfinite(float(terms[name]))]

    # -- checkpoint ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        losses = {name: self._column(name) for name in self._names}
        return {"losses": losses, "seconds": self._seconds, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        columns: Mapping[str, torch.Tensor] = state["losses"]
        rows = list(zip(*(column.unbind() for column in columns.values()), strict=True)) if columns else []
        self._losses = [dict(zip(columns, row, strict=True)) for row in rows]
        self._seconds, self._waited, self._averaged = state["seconds"], state["waited"], len(self._losses)

    @property
    def _names(self) -> list[str]:
        return [name for name in self._losses[-1] if name != "grad_norm"] if self._losses else []

    def _column(self, name: str) -> torch.Tensor:
        """One term of all steps."""
        return torch.stack([terms[name] for terms in self._losses])


def _mean(values: list[float]) -> float:
    """Of those that are finite, if any: a skipped step says nothing about the others."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
