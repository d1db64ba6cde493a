"""The network that a command or a program names, out of its file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sr_runner.config.targets import locate, signature
from sr_runner.errors import RequestError, nearest
from sr_runner.models.padding import take_any_size
from sr_runner.runs.resolve import Source
from sr_runner.weights import apply, load_model, read

OwnNetwork = str | Callable[..., object] | nn.Module
"""`package.module.Class`, the class itself, or a network to load into."""


def load_network(
    source: Source, own: OwnNetwork | None, arguments: Mapping[str, Any], *, prefix: str = ""
) -> nn.Module:
    """The network at `source`, in evaluation mode. `arguments` add what its file does not state.

    `own` is needed for a network that is not sr-run's: naming it is the consent to run it, as a file never decides
    which code runs. A class is built from the arguments in the checkpoint's config, or in the header of a file that was
    exported from it, and from `arguments`. `prefix` is what stands before an argument's name where it is an option
    (`model.`). Raises `RequestError`.
    """
    if own is None:
        return load_model(source.location, prefix=prefix, **arguments)
    weights = read(source.location)
    network = _own_network(own, weights.target_arguments | arguments_of_run(source), arguments, prefix)
    apply(network, weights)
    take_any_size(network)
    return network.eval()


def arguments_of_run(source: Source) -> dict[str, Any]:
    """What the run of a checkpoint gave its network, by the checkpoint's config."""
    model = source.config.get("model")
    arguments = model.items() if isinstance(model, dict) else ()
    return {key: value for key, value in arguments if not str(key).startswith("_")}


def _own_network(own: OwnNetwork, recorded: Mapping[str, Any], arguments: Mapping[str, Any], prefix: str) -> nn.Module:
    if isinstance(own, nn.Module):
        return own
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as sr-run does: networks of one's own lie where one works
    kind = locate("network", own) if isinstance(own, str) else own
    name = own if isinstance(own, str) else getattr(own, "__name__", repr(own))
    if not callable(kind):
        raise RequestError(f"network={name}: expected a class, package.module.Class")
    accepted, takes_any = signature(kind)
    for key in arguments:
        if key not in accepted and not takes_any:
            raise RequestError(f"{prefix}{key}: {name} has no such argument.{nearest(key, accepted)}")
    configured = {key: value for key, value in recorded.items() if key in accepted or takes_any}
    try:
        network = kind(**{**configured, **arguments})
    except (TypeError, ValueError) as error:
        raise RequestError(f"network={name}: {error}: expected its arguments, {prefix}KEY=VALUE") from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"network={name} makes a {type(network).__name__}: expected a torch.nn.Module")
    return network
