"""sr-run from Python: `train`, `load_model`, `upscale`, and the two parts that a run hangs on; the others are in the
packages below.

Importing this imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sr_runner.inference import OVERLAP, TILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from sr_runner.attempt.report import Outcome
    from sr_runner.checkpoint import CheckpointManager
    from sr_runner.inference.tiling import Pixels
    from sr_runner.runs.network import OwnNetwork
    from sr_runner.training.orchestrator import Orchestrator

__all__ = ["CheckpointManager", "Orchestrator", "load_model", "train", "upscale"]


def train(overrides: Sequence[str] = ()) -> Outcome:
    """Compose `overrides` and train, as `sr-run` does; returns what came of it.

    Raises `sr_runner.errors.RequestError` where the command line would exit with status 2, and
    `sr_runner.signals.Stopped` (a `SystemExit`) after a signal.
    """
    from sr_runner.attempt.base import with_recorded
    from sr_runner.attempt.execute import execute
    from sr_runner.config.compose import Request, composed
    from sr_runner.signals import StopSignal

    request = with_recorded(Request(overrides))
    config, choices = composed(**vars(request))
    return execute(config, choices, request, StopSignal(), command=f"sr_runner.train({list(overrides)!r})")


def load_model(source: str | Path, *, network: OwnNetwork | None = None, **what_the_file_cannot_tell: Any) -> nn.Module:
    """A ready network, [0, 1] RGB in and out, in evaluation mode.

    `source` is whatever names a run or a checkpoint (see `sr_runner.runs.resolve`; runs are looked for in `./outputs`),
    or a weights file of any layout that sr-run recognises, or its URL; network and hyperparameters are read from the
    file. `what_the_file_cannot_tell` fills in the rest, such as `res_block_scaling=0.1`.

    A network of your own has to be named, since a file does not decide which code runs: `network=mine.Net`, or its name
    as text, built from the arguments in the checkpoint's config and the given ones; or a network to load into. Raises
    `sr_runner.errors.RequestError`.
    """
    from pathlib import Path

    from sr_runner.runs.network import load_network
    from sr_runner.runs.resolve import find_source

    found = find_source(str(source), outputs=Path("outputs"))
    return load_network(found, network, what_the_file_cannot_tell)


def upscale(network: nn.Module, image: Pixels, *, tile: int = TILE, overlap: int = OVERLAP) -> Pixels:
    """The SR image of `image`, both H x W x 3 RGB, by a network as `load_model` gives one.

    The type decides: uint8 is 0..255 and comes back as uint8, rounded; floats are [0, 1] and come back as float32,
    clipped. Any size fits in memory: the network sees `tile` LR pixels squared at a time, and `overlap` more on each
    side. Raises `RequestError` for any other array (grey, RGBA, floats up to 255), and where the network does not
    enlarge RGB images by a whole factor.
    """
    import torch

    from sr_runner.inference.tiling import checked_image, scale_of, upscale_image
    from sr_runner.models.padding import grid_of

    image = checked_image(image)
    device = next(network.parameters()).device
    with torch.no_grad():
        scale = scale_of(network, device)
        return upscale_image(
            network, image, scale=scale, device=device, tile=tile, overlap=overlap, grid=grid_of(network)
        )


def __getattr__(name: str) -> Any:
    if name == "CheckpointManager":
        from sr_runner.checkpoint import CheckpointManager

        return CheckpointManager
    if name == "Orchestrator":
        from sr_runner.training.orchestrator import Orchestrator

        return Orchestrator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
