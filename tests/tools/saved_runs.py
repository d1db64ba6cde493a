"""Real checkpoints of small networks, and the parts of a run that looks for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sr_runner.attempt.build import Parts, build_parts
from sr_runner.checkpoint import CheckpointManager, Store, TrainingState
from sr_runner.checkpoint.retention import Info
from sr_runner.config.compose import composed
from sr_runner.models import EDSR
from sr_runner.weights import describe

IDENTITY = "edsr-x2-0123456789ab"
FACTS = {"scale": 2, "seed": 0, "optimizer.lr": 1e-4}


@dataclass(frozen=True)
class _All:
    def keeps(self, checkpoints: Sequence[Info]) -> set[int]:
        return {info.step for info in checkpoints}


def network(value: float = 0.0) -> EDSR:
    """A network all of whose weights are `value`, by which a test knows it."""
    made = EDSR(scale=2, num_filters=4, num_res_blocks=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def value_of(made: nn.Module) -> float:
    """The value of all weights of a network that `network` made."""
    return next(iter(made.parameters())).flatten()[0].item()


def save(store: Store, attempt: str, *steps: int, **training: Any) -> None:
    """Checkpoints of `attempt` (`<identity>/<attempt>`), in each of which every weight is the step."""
    scratch = Path("unused")
    manager = CheckpointManager(store, attempt, keep=[_All()], scratch=scratch)
    held = {"attempt": attempt, "facts": FACTS} | training
    for step in steps:
        made = network(step)
        state = TrainingState(step, made.state_dict(), held, "model: {num_filters: 4}\n", describe(made))
        manager.save(state, wait=True)
    manager.close()


def damage(file: Path) -> None:
    """Flip a bit of the last byte of `file`."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@functools.cache
def _parts() -> Parts:
    words = ("model=edsr", "model.num_filters=4", "model.num_res_blocks=1", "scale=2", "data=sample", "tracker=none")
    return build_parts(composed([*words, "trainer.device=cpu", "checkpoint=none"])[0], set())


def parts_of(outputs: Path, store: Store | None, **trainer: Any) -> Parts:
    """The real parts of a run, with these keys of `trainer`; the same network each time."""
    parts = _parts()
    config = parts.config.copy()
    config.outputs = str(outputs)
    return replace(parts, config=config, store=store, trainer=replace(parts.trainer, **trainer))
