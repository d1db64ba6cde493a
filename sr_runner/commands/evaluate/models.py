"""The models of an `sr-eval` command line: bicubic, and networks from wherever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sr_runner.commands.evaluate.published import known_network
from sr_runner.commands.network import open_network
from sr_runner.commands.options import Inference
from sr_runner.errors import RequestError
from sr_runner.inference.tiling import Upscale
from sr_runner.runs.resolve import Source

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Model:
    """Something that makes SR images. `upscale` is None for bicubic."""

    label: str
    upscale: Upscale | None = None
    network: nn.Module | None = None
    """What `upscale` runs."""
    scale: int | None = None
    grid: int = 1
    parameters: int | None = None
    published_as: str | None = None
    """The name under which results of this network, without self-ensemble, were published, if any."""
    source: Source | None = None


def open_models(wanted: Sequence[str], options: Inference, device: torch.device) -> list[Model]:
    """The models, ready to run, under labels that differ. Raises `RequestError` for one that cannot be had."""
    models = [Model(BICUBIC) if name == BICUBIC else _network(name, options, device) for name in wanted]
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
        raise RequestError("bicubic: expected scale=…, such as scale=4.")
    for label, own in scales.items():
        if own != scale:
            raise RequestError(
                f"scale={scale}: {label} enlarges by {own}. One command evaluates at one scale; "
                "leave scale out to take the model's."
            )
    return scale


def _network(name: str, options: Inference, device: torch.device) -> Model:
    opened = open_network(name, options, device)
    return Model(
        label=opened.source.label,
        upscale=opened.upscale,
        network=opened.network,
        scale=opened.scale,
        grid=opened.grid,
        parameters=sum(parameter.numel() for parameter in opened.network.parameters()),
        published_as=None if options.self_ensemble else known_network(opened.network),
        source=opened.source,
    )
