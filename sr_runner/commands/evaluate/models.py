"""The models of an `sr-eval` command line: bicubic, and networks from wherever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sr_runner.commands.evaluate.published import known_network
from sr_runner.commands.network import network_at_work, scale_of
from sr_runner.errors import RequestError
from sr_runner.inference.tiling import Upscale
from sr_runner.runs.network import Load, load_network
from sr_runner.runs.resolve import Source, find_source

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Model:
    """Something that makes SR images. `upscale` is None for bicubic."""

    label: str
    upscale: Upscale | None = None
    scale: int | None = None
    parameters: int | None = None
    published_as: str | None = None
    """The name under which results of this network, without self-ensemble, were published, if any."""
    source: Source | None = None


@dataclass(frozen=True)
class Setting:
    """How networks are found and run."""

    device: torch.device
    precision: str
    self_ensemble: bool
    outputs: Path
    checkpoints: str
    network: str
    """A class of the user's for networks that sr-run does not know, or empty; see `load_network`."""
    arguments: Mapping[str, Any]
    """`model.*`: what files cannot tell."""


def open_models(wanted: Sequence[str], setting: Setting, load: Load) -> list[Model]:
    """The models, ready to run, under labels that differ. Raises `RequestError` for one that cannot be had."""
    models = [Model(BICUBIC) if name == BICUBIC else _network(name, setting, load) for name in wanted]
    count = Counter(model.label for model in models)
    return [
        replace(model, label=name) if count[model.label] > 1 else model
        for model, name in zip(models, wanted, strict=True)
    ]


def common_scale(models: Sequence[Model], wanted: int | None) -> int:
    """The scale that was asked for, or that of the networks. Raises `RequestError` where they disagree."""
    scales = {model.label: model.scale for model in models if model.scale is not None}
    scale = wanted if wanted is not None else next(iter(scales.values()), None)
    if scale is None:
        raise RequestError("scale=… is needed: bicubic enlarges by any factor, for example scale=4.")
    for label, own in scales.items():
        if own != scale:
            raise RequestError(
                f"scale={scale}: {label} enlarges by {own}. One command evaluates at one scale; "
                "leave scale out to take the model's."
            )
    return scale


def _network(name: str, setting: Setting, load: Load) -> Model:
    source = find_source(name, outputs=setting.outputs, checkpoints=setting.checkpoints)
    network = load_network(source, load, setting.network, setting.arguments)
    hyperparameters: dict[str, object] = getattr(network, "hyperparameters", dict)()
    upscale = network_at_work(network, setting.device, precision=setting.precision, ensemble=setting.self_ensemble)
    return Model(
        label=source.label,
        upscale=upscale,
        scale=scale_of(upscale, setting.device),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        published_as=None if setting.self_ensemble else known_network(type(network).__name__, hyperparameters),
        source=source,
    )
