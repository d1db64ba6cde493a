"""A network's weights out to files: sr-run's own safetensors, and the layouts of BasicSR and EDSR-PyTorch."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sr_runner.errors import RequestError, check_choice
from sr_runner.files import draft_of
from sr_runner.models import SpandrelNetwork
from sr_runner.weights import layouts, shapes
from sr_runner.weights.applying import hyperparameters_of, name_of, unwrap

log = logging.getLogger(__name__)

LAYOUTS: dict[str, tuple[str, ...]] = {"safetensors": (), "basicsr": ("edsr", "msrresnet"), "edsr-pytorch": ("edsr",)}
"""The networks of each layout; safetensors has any."""


def describe(network: nn.Module) -> dict[str, str]:
    """The safetensors header that describes the network of a state, so that `read` can build it again.

    `sr_run` is JSON: {"network": "edsr", "hyperparameters": {...}}, or {"network": null, "target": "my.module.Net"}.
    """
    inner = unwrap(network)
    name = "spandrel" if isinstance(inner, SpandrelNetwork) else name_of(inner)
    body: dict[str, object] = {"network": name, "hyperparameters": hyperparameters_of(inner)}
    if name is None:
        body = {"network": None, "target": f"{type(inner).__module__}.{type(inner).__qualname__}"}
    return {"format": "pt", "sr_run": json.dumps(body)}


def check_layout(layout: str, network: str | None, shown: str) -> None:
    """Raises `RequestError` where `layout` is unknown or has no `network` (a name of `shapes.CLASSES`)."""
    check_choice("layout", layout, LAYOUTS)
    if (networks := LAYOUTS[layout]) and network not in networks:
        names = " and ".join(shapes.CLASSES[name].__name__ for name in networks)
        raise RequestError(f"layout={layout}: it has only {names}, not {shown}: use safetensors")


def export(network: nn.Module, path: str | Path, layout: str = "safetensors") -> Path:
    """Write the network's weights to `path` in `layout`, at once or not at all; returns the path.

    `safetensors` takes any network. `basicsr` (a `.pth` with `params`) takes EDSR and MSRResNet, `edsr-pytorch` (a
    `.pt`) EDSR; EDSR's weights are moved to rgb_range 255, which is exact. `res_block_scaling` is in neither file:
    set `res_scale` there; a warning is logged where it is not 1.

    Raises:
        RequestError: the layout is unknown, has no such network, or the path cannot be written.
    """
    inner, path = unwrap(network), Path(path)
    name = name_of(inner)
    check_layout(layout, name, type(inner).__name__)
    # Copies: safetensors refuses tensors that share memory (tied weights).
    state = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in inner.state_dict().items()
    }
    content: object = state
    if layout != "safetensors":
        if name == "edsr":
            if inner.res_block_scaling != 1:
                log.warning("%s does not hold res_block_scaling: set res_scale=%g there", path, inner.res_block_scaling)
            state = layouts.rescale_range(state, float(inner.rgb_range), layouts.RGB_RANGE)  # type: ignore[arg-type]
        if layout == "basicsr":
            content = {"params": layouts.basicsr(str(name), state, to_theirs=True)}
        else:
            content = layouts.to_edsr_pytorch(state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(path) as draft:
            if layout == "safetensors":
                save_file(state, draft, metadata=describe(inner))
            else:
                with draft.open("wb") as file:  # torch would name the archive after a path
                    torch.save(content, file)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from error
    return path
