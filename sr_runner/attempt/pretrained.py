"""Pre-trained weights for a run: `checkpoint.init_from`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sr_runner import weights
from sr_runner.checkpoint import DamagedError
from sr_runner.checkpoint.stores import checkpoint_at
from sr_runner.config.settings import CheckpointSettings
from sr_runner.errors import RequestError
from sr_runner.runs.catalogue import Catalogue

log = logging.getLogger(__name__)


def initialise(model: nn.Module, settings: CheckpointSettings, catalogue: Catalogue) -> str | None:
    """Load what `settings.init_from` names into `model`; every tensor that was loaded, skipped or is new is logged.

    Returns what stands for the weights in a run's identity (their content, not their place), None without any.
    Raises `RequestError` where there is no such thing or it does not fit.
    """
    if settings.init_from is None:
        return None
    options = {} if settings.init_options is None else settings.init_options
    if not isinstance(options, Mapping):
        raise RequestError(
            f"checkpoint.init_options={options}: expected arguments by name, such as {{res_block_scaling: 0.1}}"
        )
    source = _source(settings.init_from, catalogue)
    try:
        loaded = weights.read(source, **{str(key): value for key, value in options.items()})
        report = weights.apply(model, loaded, rule=settings.init_rule)  # type: ignore[arg-type]
    except RequestError as error:
        raise RequestError(f"checkpoint.init_from={weights.shown(settings.init_from)}: {error}") from error
    for line in report.lines():
        log.info("%s", line)
    return loaded.digest


def _source(wanted: str, catalogue: Catalogue) -> str | Path:
    """A file, a checkpoint's folder, a URL of either; a run's name or folder stands for its newest checkpoint."""
    if (elsewhere := checkpoint_at(wanted)) is not None:
        store, name = elsewhere
        try:
            return store.get(name, catalogue.scratch)
        except (OSError, DamagedError) as error:
            raise RequestError(f"checkpoint.init_from={wanted} cannot be had: {error}") from error
    path = Path(wanted).expanduser()
    if weights.is_url(wanted) or path.is_file() or weights.is_checkpoint(path):
        return wanted
    try:
        return catalogue.folder_of_checkpoint(wanted)
    except RequestError as error:
        if path.exists():
            return wanted  # what is the matter with it is said where it is read
        what = str(error).rstrip(".")
        raise RequestError(f"checkpoint.init_from={what}. Nor is there a file or folder of that name") from error
