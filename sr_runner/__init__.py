"""sr-run from Python: `train(overrides=[...])` and `load_model(source)`; the parts are in the packages below.

Importing this imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from sr_runner.attempt.report import Outcome

__all__ = ["load_model", "train"]


def train(overrides: Sequence[str] = ()) -> Outcome:
    """Compose `overrides` and train, as `sr-run` does; returns what came of it.

    Raises `sr_runner.errors.RequestError` where the command line would exit with status 2, and
    `sr_runner.signals.Stopped` (a `SystemExit`) after a signal.
    """
    from sr_runner.attempt.execute import execute
    from sr_runner.config.compose import composed
    from sr_runner.signals import StopSignal

    config, choices = composed(overrides)
    return execute(config, choices, list(overrides), StopSignal())


def load_model(source: str | Path, **what_the_file_cannot_tell: Any) -> nn.Module:
    """A ready network, [0, 1] RGB in and out, in evaluation mode.

    `source` is whatever names a run or a checkpoint (see `sr_runner.runs.resolve`; runs are looked for in `./outputs`),
    or a weights file of any layout that sr-run recognises, or its URL; network and hyperparameters are read from the
    file. `what_the_file_cannot_tell` fills in the rest, such as `res_block_scaling=0.1`.
    """
    from pathlib import Path

    from sr_runner.runs.resolve import find_source
    from sr_runner.weights import load_model as load

    outputs = Path("outputs")
    found = find_source(str(source), outputs=outputs, checkpoints=outputs / "checkpoints")
    return load(found.location, **what_the_file_cannot_tell)
