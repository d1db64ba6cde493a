"""What happened since the last point of `train/*`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Window:
    """Part of the checkpoint, so that a resume splits no mean."""

    losses: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """The terms of each step, scalars on the device; `grad_norm`, where it was measured, is not averaged."""
    seconds: float = 0.0
    waited: float = 0.0
    shared: int = 0
    """Of how many steps the losses are means over all processes by now."""

    @property
    def names(self) -> list[str]:
        return [name for name in self.losses[-1] if name != "grad_norm"] if self.losses else []

    def column(self, name: str) -> torch.Tensor:
        """One term of all steps."""
        return torch.stack([terms[name] for terms in self.losses])

    def share(self, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put in place of this process's losses what `mean` makes of them (a tensor of steps x terms), once."""
        new, names = self.losses[self.shared :], self.names
        if new:
            means = mean(torch.stack([torch.stack([terms[name] for name in names]) for terms in new]))
            for terms, row in zip(new, means.unbind(), strict=True):
                terms |= dict(zip(names, row.unbind(), strict=True))
            self.shared = len(self.losses)

    def state(self) -> dict[str, Any]:
        losses = {name: self.column(name) for name in self.names}
        return {"losses": losses, "seconds": self.seconds, "waited": self.waited}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Window:
        """The inverse of `state`."""
        columns: Mapping[str, torch.Tensor] = state["losses"]
        rows = list(zip(*(column.unbind() for column in columns.values()), strict=True)) if columns else []
        losses = [dict(zip(columns, row, strict=True)) for row in rows]
        return cls(losses, state["seconds"], state["waited"], shared=len(losses))
