"""What came of a run: for Python, for its folder, and for people."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sr_runner.attempt.build import Parts
from sr_runner.errors import printable
from sr_runner.evaluation.metrics import Score, title
from sr_runner.evaluation.protocol import Evaluation
from sr_runner.files import plain_json, read_file
from sr_runner.runs.folder import RESULT
from sr_runner.streams import ReaderGone, drop
from sr_runner.training.result import Result, psnr_of

log = logging.getLogger(__name__)

Shown = Literal["table", "json", "nothing"]
"""What a run that has finished prints."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `sr_runner.train` returns."""

    identity: str
    attempt: str
    folder: Path
    """`outputs/runs/<identity>/<attempt>`: log, config, journal, pictures."""
    checkpoint: str | None
    """The last checkpoint, in the words of its store. Of several processes only the first knows it, and `run_id`."""
    step: int
    metrics: dict[str, float]
    """`valid/psnr` and so on, of the last evaluation."""
    run_id: str | None
    """MLflow's id of the run."""
    gain: float | None = None
    """The last evaluation's PSNR over that of bicubic, in dB."""
    parameters: int = 0
    """Of the network."""
    seconds: float | None = None
    """That it was worked on until then, in all starts; one that was killed has none."""

    @property
    def psnr(self) -> float:
        """Of the last evaluation, in dB; NaN without one."""
        psnr = psnr_of(self.metrics)
        return float("nan") if psnr is None else psnr


def as_json(result: Result) -> str:
    content = dataclasses.asdict(result)
    content["images"] = content.pop("scores")
    return json.dumps(content, indent=1)


def result_of(folder: Path) -> Result | None:
    """The inverse of `as_json`, out of a run's folder; None where there is none that can be read."""
    try:
        content = plain_json(read_file(folder / RESULT))
        scores, bicubic = (tuple(Score(**row) for row in content.pop(name)) for name in ("images", "bicubic"))
        result = Result(scores=scores, bicubic=bicubic, **content)
        numbers = [*result.metrics.values(), *result.best.values()]
        numbers += [value for row in (*scores, *bicubic) for value in row.values.values()]
        is_whole = isinstance(result.step, int) and all(isinstance(number, int | float) for number in numbers)
        return result if is_whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def print_report(text: Callable[[], str], place: Path, what: str = "the run has finished") -> None:
    """Print `text()`: whatever goes wrong with that changes nothing of what has ended. `place` has the report too."""
    try:
        sys.stdout.write(text())
        sys.stdout.flush()
    except ReaderGone:
        drop(sys.stdout)
    except Exception as error:
        drop(sys.stdout)
        log.warning("%s, but its report could not be printed (%s): see %s", what, error, place)


def json_of(outcome: Outcome) -> str:
    """The outcome as one JSON document."""
    return json.dumps(dataclasses.asdict(outcome), indent=1, default=str) + "\n"


def report_of(outcome: Outcome, result: Result, parts: Parts, choices: dict[str, str], seconds: float) -> str:
    """The last lines of a run."""
    lines = [f"Step {result.step} of {parts.trainer.steps}, {seconds:.0f} s. Identity {outcome.identity}"]
    if result.scores:
        lines += _table(result.scores, result.bicubic, choices.get("model", "model"), parts.config.scale)
    best, key = result.best, parts.checkpoint.best_metric
    if key in best and best["step"] != result.step:
        name = key.removeprefix("valid/")
        shown = f"{best[key]:.2f} dB" if name.startswith("psnr") else f"{best[key]:.4f}"
        lines.append(f"{f'Best {title(name)}':<12}{shown} at step {best['step']:.0f}")
    if outcome.checkpoint:
        lines.append(f"Checkpoint  {outcome.checkpoint}")
    hint = parts.tracker.ui_hint()
    if hint is not None:
        command, address = hint
        lines.append(f"MLflow UI   {command}" if command else f"MLflow UI   {address}")
        if command:
            lines.append(f"            then open {address}")
    # Whoever made an image chose its name: that makes no line of its own.
    return "\n" + "\n".join(map(printable, lines)) + "\n"


def _table(scores: Sequence[Score], bicubic: Sequence[Score], model: str, scale: int) -> list[str]:
    """PSNR (RGB) against bicubic, per image (the first ten) and on the mean."""
    shown, name = list(scores[:10]), f"{model} x{scale}"
    width = max(len("validation"), *(len(score.image) for score in shown))
    lines = [f"{'PSNR (RGB)':<{width}}   {'bicubic':>8}  {name:>10}      gain"]
    base = {score.image: score.psnr for score in bicubic}

    def row(label: str, here: float, there: float) -> str:
        return f"{label:<{width}}  {there:8.2f}   {here:9.2f}  {here - there:+7.2f} dB"

    lines += [row(score.image, score.psnr, base.get(score.image, float("nan"))) for score in shown]
    if len(scores) > 1:
        mean_of = [Evaluation(list(rows)).mean["psnr"] if rows else float("nan") for rows in (scores, bicubic)]
        lines.append(row(f"mean of {len(scores)}", *mean_of))
    return lines
