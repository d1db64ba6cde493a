"""How steps are put together: one after the other, in random order, or only now and then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr_runner.data.degradations.canvas import Canvas, Draw
from sr_runner.errors import RequestError


class Step(Protocol):
    """One thing that happens to pictures on their way from HR to LR: a frozen dataclass of its parameters."""

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        """Do it to every picture, with parameters from `draw`; must not depend on the other pictures of the batch."""


@dataclass(frozen=True)
class Sometimes:
    """`step` with a `probability`, else nothing; and nothing at scales that are not among `at_scales`, if given."""

    step: Step
    probability: float
    at_scales: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        if self.at_scales is not None and canvas.scale not in self.at_scales:
            return canvas
        return apply_where(self.step, canvas, draw.child(0), draw.chance(0, self.probability))


@dataclass(frozen=True)
class Chain:
    """`steps` one after the other."""

    steps: Sequence[Step]

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        for place, step in enumerate(self.steps):
            canvas = step(canvas, draw.child(place))
        return canvas


@dataclass(frozen=True)
class Shuffled:
    """`steps` in a random order, another one for every picture; those whose places are `in_order` keep theirs."""

    steps: Sequence[Step]
    in_order: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        if any(not 0 <= place < len(self.steps) for place in self.in_order):
            raise RequestError(f"in_order={list(self.in_order)}: places are from 0 to {len(self.steps) - 1}.")

    def __call__(self, canvas: Canvas, draw: Draw) -> Canvas:
        orders = self.orders(draw)
        for position in range(len(self.steps)):
            for place, step in enumerate(self.steps):
                canvas = apply_where(step, canvas, draw.child(place), orders[:, position] == place)
        return canvas

    def orders(self, draw: Draw) -> npt.NDArray[np.int64]:
        """N x steps: which step comes first, second, ... for each picture."""
        ranks = np.stack([draw.uniform(place) for place in range(len(self.steps))], axis=1)
        fixed = sorted(self.in_order)
        ranks[:, fixed] = np.sort(ranks[:, fixed], axis=1)
        return np.argsort(ranks, axis=1, kind="stable")


@dataclass(frozen=True)
class Degradation:
    """`steps` that make LR from HR pictures; the last one that resizes must be to the LR size (`relative_to=lr`)."""

    steps: Sequence[Step]

    def __post_init__(self) -> None:
        if not self.steps:
            raise RequestError("data.degradation.steps is empty; expected a step that resizes to the LR size.")

    @property
    def identity(self) -> str:
        """Steps and parameters as text: equal for equal degradations, however they were written down."""
        return json.dumps(_plain(self), sort_keys=True)

    def __call__(self, hr: Tensor, *, scale: int, seed: int, n: npt.NDArray[np.int64]) -> Tensor:
        """LR (N x 3 x h x w uint8) of `hr` (N x 3 x H x W float32 in [0, 1]), the HR pictures of samples `n`.

        A pure function of (`seed`, `n`) and the picture, to the accuracy of the device's arithmetic.
        """
        with torch.no_grad():
            canvas = Chain(self.steps)(Canvas.of(hr, scale), Draw.of(seed, n))
            height, width = canvas.target
            if (canvas.heights != height).any() or (canvas.widths != width).any():
                raise RequestError(
                    "data.degradation.steps do not end with pictures of the LR size; add a Resize with factor=1 and "
                    "relative_to=lr."
                )
            lr = canvas.pixels[:, :, :height, :width]
            return lr.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _plain(value: object) -> object:
    """Dataclasses, sequences and numbers in JSON's types; 1 and 1.0, lists and tuples become alike."""
    if dataclasses.is_dataclass(value):
        parameters = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {type(value).__name__: parameters}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, str | bool | None) else repr(value)


def check_probability(name: str, value: float) -> None:
    """Raises `RequestError` where `value` is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise RequestError(f"data.degradation: {name}={value}: expected a number from 0 to 1.")


def check_range(name: str, given: Sequence[float], *, at_least: float, at_most: float = float("inf")) -> None:
    """Raises `RequestError` where `given` is not [low, high] within the bounds."""
    if len(given) != 2 or not at_least <= given[0] <= given[1] <= at_most:
        raise RequestError(f"data.degradation: {name}={list(given)}: expected [low, high], {at_least} or more.")


def apply_where(step: Step, canvas: Canvas, draw: Draw, chosen: npt.NDArray[np.bool_]) -> Canvas:
    """`step` for the pictures at which `chosen` is true; a batch in which none is skips it."""
    if chosen.all():
        return step(canvas, draw)
    if not chosen.any():
        return canvas
    return canvas.merge(chosen, step(canvas.select(chosen), draw.select(chosen)))
