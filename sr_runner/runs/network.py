"""The network that a command line names, out of its file."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sr_runner.errors import RequestError, nearest
from sr_runner.runs.resolve import Source
from sr_runner.weights import load_model

_NOT_IN_EVERY_FILE = ("res_block_scaling", "rgb_range")


def load_network(source: Source, own: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network at `source`. `arguments` (`model.KEY=VALUE`) add what its file does not state.

    `own` names a class of the user's, `package.module.Class`, for weights of a network that sr-run does not know; it
    is built from the config in the checkpoint and from `arguments`. Naming it is the consent to run it: a file
    never decides which code runs. Raises `RequestError`.
    """
    if own:
        return load_model(source.location, network=_own_network(own, source, arguments))
    try:
        return load_model(source.location, **arguments)
    except RequestError as error:
        if any(name in str(error) for name in _NOT_IN_EVERY_FILE):
            raise RequestError(f"{error}. Here that is an option, model.KEY=VALUE.") from error
        if "network=" in str(error):
            raise RequestError(f"{error}. Here that is an option, network=package.module.Class.") from error
        raise


def _own_network(name: str, source: Source, arguments: Mapping[str, Any]) -> nn.Module:
    kind = _class_named(name)
    accepted = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for key in arguments:
        if key not in accepted and not takes_any:
            raise RequestError(f"model.{key}: {name} has no such argument.{nearest(key, accepted)}")
    model = source.config.get("model")  # the arguments that the run gave its network
    recorded = model if isinstance(model, dict) else {}
    configured = {k: v for k, v in recorded.items() if not k.startswith("_") and (k in accepted or takes_any)}
    try:
        network = kind(**{**configured, **arguments})
    except (TypeError, ValueError) as error:
        raise RequestError(f"network={name}: {error}. model.KEY=VALUE gives it arguments.") from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"network={name} is not a torch.nn.Module.")
    return network


def _class_named(name: str) -> Callable[..., object]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as sr-run does: networks of one's own lie where one works
    module, _, attribute = name.rpartition(".")
    try:
        kind: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"network={name}: expected package.module.Class that can be imported ({error}).") from error
    return kind
