"""What a checkpoint holds, typed: the one place that knows the keys of `state.json` and `training.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sr_runner.checkpoint.format import STATE

Rows = Sequence[Mapping[str, Any]]
"""Scores per image, as plain data."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run is at one step, as the Checkpoint Manager saves and restores it."""

    step: int
    model: Mapping[str, torch.Tensor]
    """The weights for inference (averaged where EMA or a schedule-free optimizer says so), by parameter name."""
    training: Mapping[str, Any]
    """A tree of everything else, tensors and plain data anywhere in it: that of `RunState`."""
    config: str
    """The run's config as YAML, secrets masked."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What `model.safetensors` says about its network."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The evaluation at this step, for retention."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which run a checkpoint belongs to. Plain data: readable from `state.json` without any tensor."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the run's identity was computed from, flat: `{"optimizer.lr": 0.0001, ...}`."""
    attempt: str = ""
    """`<identity>/<attempt>`."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What its config was composed from (`config.compose.Request`), secrets masked."""
    job: str | None = None
    """The scheduler's job that worked on the attempt last."""
    tracker: Mapping[str, Any] = field(default_factory=dict)
    """The tracker's ids of the run, and the points that its server had not confirmed."""

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Origin:
        """From the content of `state.json`. Raises `ValueError` where that is of another kind."""
        known = {each.name: tree[each.name] for each in fields(cls) if tree.get(each.name) is not None}
        for name, value in known.items():
            if not isinstance(value, str if name in ("attempt", "job") else Mapping):
                raise ValueError(f"{name} is {value!r}")
        return cls(**known)

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """From the `state.json` in `folder`, which is not checked; an empty one where that cannot be read."""
        try:
            return cls.of(json.loads((folder / STATE).read_bytes()))
        except (OSError, ValueError, AttributeError, RecursionError):
            return cls()

    def tree(self) -> dict[str, Any]:
        """The inverse of `of`."""
        tree = {each.name: getattr(self, each.name) for each in fields(self)}
        return tree if self.job is not None else {name: value for name, value in tree.items() if name != "job"}


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of the training loop beside the exported weights."""

    step: int
    networks: Mapping[str, Mapping[str, torch.Tensor]]
    """The weights in training by network and parameter name; without those that are exported as they are."""
    learners: Mapping[str, Mapping[str, Any]]
    """`Learner.state_dict()` by network: optimizer, schedule, loss scaler."""
    random: Mapping[str, Any]
    """The global random generators of the main process."""
    others: Sequence[Mapping[str, Any]] = ()
    """Those of its peers, by rank."""
    window: Mapping[str, Any]
    """The steps since the last point of `train/*`."""
    evaluated_at: int
    """The step of the last evaluation."""
    best: Mapping[str, float]
    """The evaluation of the best `checkpoint.best_metric` so far, with its `step`; empty before the first."""
    scores: Rows
    """The last evaluation."""
    bicubic: Rows
    """The same images by bicubic."""
    final: Mapping[str, Any]
    """The evaluation on all images at the end: `step` (0: none yet), `scores`, `bicubic`."""
    environment: Mapping[str, Any]
    """What else the last bits depend on: the version of PyTorch, the device, ..."""
    origin: Origin

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> RunState:
        """From `TrainingState.training`. Raises `KeyError` and `ValueError` where something is missing or of another
        kind."""
        optional = ("origin", "others")
        known = {each.name: tree[each.name] for each in fields(cls) if each.name not in optional}
        return cls(**known, others=tree.get("others", ()), origin=Origin.of(tree))

    def tree(self) -> dict[str, Any]:
        """The inverse of `of`."""
        tree = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "origin"}
        if not self.others:
            del tree["others"]
        return tree | self.origin.tree()
