"""Pre-trained weights for a run: `checkpoint.init_from`."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import nn

from sr_runner import weights
from sr_runner.checkpoint.catalogue import Catalogue
from sr_runner.errors import RequestError
from sr_runner.settings import CheckpointSettings

log = logging.getLogger(__name__)


def initialise(model: nn.Module, settings: CheckpointSettings, catalogue: Catalogue) -> str | None:
    """Load what `settings.init_from` names into `model`; every tensor that was loaded, skipped or is new is logged.

    Returns what stands for the weights in a run's identity (their content, not their place), None without any.
    Raises `RequestError` where there is no such thing or it does not fit.
    """
    wanted = settings.init_from
    if wanted is None:
        return None
    source: str | Path = wanted
    if not wanted.startswith(("http://", "https://")) and not Path(wanted).expanduser().exists():
        try:
            source = catalogue.folder_of_checkpoint(wanted)
        except RequestError as error:
            raise RequestError(f"checkpoint.init_from={error}, and no file or folder of that name") from error
    try:
        loaded = weights.read(source, **dict(settings.init_options or {}))
        report = weights.apply(model, loaded, rule=settings.init_rule)  # type: ignore[arg-type]
    except RequestError as error:
        raise RequestError(f"checkpoint.init_from={wanted}: {error}") from error
    for line in report.lines():
        log.info("%s", line)
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.state.items()):
        digest.update(name.encode() + str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
