"""Pre-trained weights for a run: `checkpoint.init_from`."""

from __future__ import annotations

import logging

from torch import nn

from sr_runner import weights
from sr_runner.config.settings import CheckpointSettings
from sr_runner.errors import RequestError
from sr_runner.runs.catalogue import Catalogue
from sr_runner.runs.resolve import source

log = logging.getLogger(__name__)

_RULES = {"matching": "takes what fits", "body": "keeps the scale and leaves the upsampler new"}


def initialise(model: nn.Module, settings: CheckpointSettings, catalogue: Catalogue) -> str | None:
    """Load what `settings.init_from` names (see `runs.resolve`) into `model`; what is loaded, skipped or new is logged.

    Returns what stands for the weights in a run's identity (their content, not their place), None without any.
    Raises `RequestError` where there is no such thing or it does not fit.
    """
    if settings.init_from is None:
        return None
    options = settings.init_options or {}
    # Where this run's checkpoints go says nothing of where those of another are.
    elsewhere = catalogue.at(catalogue.store, follows_records=True)
    found = source(settings.init_from, elsewhere, "checkpoint.init_from=")
    try:
        loaded = weights.read(found.location, **{str(key): value for key, value in options.items()})
        report = weights.apply(model, loaded, rule=settings.init_rule)  # type: ignore[arg-type]
    except RequestError as error:
        rule = error.rule if isinstance(error, weights.MisfitError) else None
        other = f". checkpoint.init_rule={rule} {_RULES[rule]}" if rule is not None else ""
        raise RequestError(f"checkpoint.init_from={weights.shown(settings.init_from)}: {error}{other}") from error
    report.log(log)
    return loaded.digest
