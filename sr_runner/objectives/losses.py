"""The loss as a list of named, weighted terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sr_runner.config.settings import TermSettings
from sr_runner.errors import RequestError
from sr_runner.objectives.sharpening import sharpened

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of SR and HR, N x 3 x H x W: one number, or one for each image, whose mean counts. An `nn.Module` or a function."""

Row: TypeAlias = dict[str, Tensor]
"""What a batch or a step came to: scalars on the device by name."""


class Term(nn.Module):
    """`loss(sr, hr)` as a scalar in fp32, before its weight, of images in [0, 1] that are brought to its range."""

    def __init__(self, loss: Loss, settings: TermSettings | None = None):
        super().__init__()
        self.loss, self.settings = loss, settings or TermSettings()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        made = self.of(sr, hr).float()
        return made if made.dim() == 0 else made.mean()

    def of(self, sr: Tensor, hr: Tensor) -> Tensor:
        """What `loss` itself makes of them."""
        black, white = self.settings.range
        if (black, white) != (0, 1):
            sr, hr = (images * (white - black) + black for images in (sr, hr))
        return self.loss(sr, hr)


class Losses(nn.Module):
    """The terms of a loss, by name.

    Nothing in them is trained: they are frozen and in evaluation mode. LPIPS is why: its parameters would let
    themselves be trained, to zero. What a term keeps in buffers may change from step to step.
    """

    def __init__(self, terms: Mapping[str, Term | Loss]):
        """Raises `RequestError` for what is no name of a term."""
        super().__init__()
        self.terms: dict[str, Term] = {}
        for name, term in terms.items():
            if not re.fullmatch(r"[a-zA-Z]\w*", name) or hasattr(self, name):
                raise RequestError(f"objective.losses.{name}: expected a name of letters, digits and _, such as pixel")
            self.terms[name] = term if isinstance(term, Term) else Term(term)
            self.add_module(name, self.terms[name])
        self.eval().requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Row:
        """Each term before its weight; those that ask for it within `autocast`."""
        found: Row = {}
        with torch.no_grad():
            sharp = sharpened(hr) if any(term.settings.sharpen for term in self.terms.values()) else hr
        for name, term in self.terms.items():
            with autocast() if term.settings.autocast else nullcontext():
                found[name] = term(sr, sharp if term.settings.sharpen else hr)
        return found

    def weighted(self, found: Row) -> list[Tensor]:
        """The terms of `forward` times their weights."""
        weights = {name: term.settings.weight for name, term in self.terms.items()}
        return [value if weights[name] == 1 else weights[name] * value for name, value in found.items()]

    def __str__(self) -> str:
        """`L1Loss + 0.05 FrequencyLoss`"""
        words = [
            f"{'' if term.settings.weight == 1 else f'{term.settings.weight:g} '}{type(term.loss).__name__}"
            f"{' to sharpened HR' if term.settings.sharpen else ''}"
            for term in self.terms.values()
        ]
        return " + ".join(words)

    @property
    def file_contents(self) -> dict[str, str | None]:
        """For a run's identity, as `sr_runner.config.identity.Part` has it."""
        return {
            f"losses.{name}.{key}": content
            for name, term in self.terms.items()
            for key, content in getattr(term.loss, "file_contents", {}).items()
        }

    # -- checkpoint ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What may have changed since the start: buffers, by their names. Weights are frozen, and not in it."""
        frozen = {name for name, _ in self.named_parameters()}
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` where that is the state of other terms."""
        if differ := state.keys() ^ self.state().keys():
            raise ValueError(f"state of other losses: {', '.join(sorted(differ))}")
        self.load_state_dict(dict(state), strict=False)


def total(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum()


def mean(rows: Sequence[Row]) -> Row:
    return rows[0] if len(rows) == 1 else {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
