"""What Optuna draws of a search: its course, what mattered, and which values went together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_runner.commands.search import study_in
from sr_runner.files import draft_of, own_folder
from sr_runner.masking import cause

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

PLOTS = "search"
"""In the folder of the sweep, and among the artifacts of its run."""
_SIZE, _DPI = (9.0, 5.0), 110  # inches


def draw(folder: Path, metrics: Sequence[str]) -> list[Path]:
    """Draw the study in the sweep's `folder`, a search for `metrics`, as PNG files in its folder `search`; their paths.

    What cannot be drawn, such as the importances after one trial, is left out.
    """
    import matplotlib

    matplotlib.use("Agg")  # no window, whatever the environment asks for
    study, place = study_in(folder), own_folder(folder, folder / PLOTS)
    drawn = []
    for name, plot in _plots(study, metrics):
        try:
            place.mkdir(exist_ok=True)
            _write(place / f"{name}.png", plot)
            drawn.append(place / f"{name}.png")
        except Exception as error:  # whatever Optuna finds no picture of
            log.debug("%s: %s", name, cause(error))
    return drawn


def _plots(study: optuna.Study, metrics: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of files and how to draw them: of each metric, and of all together."""
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    trials = study.get_trials(deepcopy=False)
    if sum(trial.state == TrialState.COMPLETE for trial in trials) > 1:
        for number, metric in enumerate(metrics):
            part = study if len(metrics) == 1 else _for_one_metric(study, number)
            of = "" if len(metrics) == 1 else f"-{metric.replace('/', '-')}"
            yield f"optimization-history{of}", partial(plots.plot_optimization_history, part, target_name=metric)
            yield f"parameter-importances{of}", partial(plots.plot_param_importances, part, target_name=metric)
            yield f"parallel-coordinates{of}", partial(plots.plot_parallel_coordinate, part, target_name=metric)
        if len(metrics) in (2, 3):
            yield "pareto-front", partial(plots.plot_pareto_front, study, target_names=list(metrics))
    if any(trial.intermediate_values for trial in trials):
        yield "intermediate-values", partial(plots.plot_intermediate_values, study)


def _for_one_metric(study: optuna.Study, number: int) -> optuna.Study:
    """As if only the metric of that number had been searched for: with a `target` instead, Optuna draws no best value,
    and what is to be large in the colours of what is to be small."""
    import optuna

    part = optuna.create_study(direction=study.directions[number])
    for trial in study.get_trials():
        if trial.values is not None:
            trial.values = [trial.values[number]]
        part.add_trial(trial)
    return part


def _write(path: Path, plot: Callable[[], Any]) -> None:
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its drawings experimental
        try:
            figure = plot().figure
            figure.set_size_inches(*_SIZE)
            with draft_of(path) as draft:
                figure.savefig(draft, format="png", dpi=_DPI, bbox_inches="tight")
        finally:
            pyplot.close("all")
