"""What the small tools share: networks by name, and where and how precisely they compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_runner.commands.options import Inference
from sr_runner.inference.ensemble import self_ensemble
from sr_runner.inference.tiling import Upscale, scale_of
from sr_runner.models.padding import grid_of
from sr_runner.objectives.learner import autocast
from sr_runner.runs.network import load_network
from sr_runner.runs.resolve import Source, find_source
from sr_runner.training.device import resolve_precision


@dataclass(frozen=True)
class Opened:
    """A network at work."""

    source: Source
    network: nn.Module
    upscale: Upscale
    scale: int
    grid: int
    """As `upscale_image` takes it."""


def open_network(name: str, options: Inference, device: torch.device) -> Opened:
    """The network that `name` means, ready to run on `device`. Raises `RequestError` for one that cannot be had."""
    source = find_source(name, outputs=Path(options.outputs), checkpoints=options.store)
    network = load_network(source, options.network, options.model, prefix="model.")
    upscale = _at_work(network, device, precision=options.precision, ensemble=options.self_ensemble)
    return Opened(source, network, upscale, scale_of(upscale, device), grid_of(network))


def _at_work(network: nn.Module, device: torch.device, *, precision: str, ensemble: bool) -> Upscale:
    """`network` on `device`, in evaluation mode, as a function of an LR batch. fp32 means it: TF32 is off."""
    resolved = resolve_precision(precision, device, "precision")
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    torch.backends.cudnn.allow_tf32 = resolved != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = resolved != "fp32"

    def upscale(lr: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device.type, resolved):
            sr: Tensor = network(lr)
        return sr.float()

    return self_ensemble(upscale) if ensemble else upscale
