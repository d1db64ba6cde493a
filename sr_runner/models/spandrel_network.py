"""The super-resolution networks of spandrel (SwinIR, HAT, RCAN, ESRGAN, DAT, SPAN, ...) as one `nn.Module`.

Those of spandrel_extra_arches, which has the ones under other licences, are among them where it is installed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError, nearest
from sr_runner.models.padding import upscale_padded

# What the architectures call their scale.
_SCALE_ARGUMENTS = ("upscale", "scale", "upscaling_factor")
# ... and their channels, where they have no default.
_CHANNEL_ARGUMENTS = ("num_in_ch", "num_out_ch", "in_chans", "in_nc", "out_nc", "n_colors")


class SpandrelNetwork(nn.Module):
    """N x 3 x H x W RGB in [0, 1] -> N x 3 x (H scale) x (W scale), about [0, 1], not clipped.

    Sizes that an architecture cannot take (a multiple, a minimum) are padded by reflection and cropped again.

    Args:
        scale: what the network enlarges by.
        architecture: its class as spandrel's modules name it, e.g. `SwinIR`, or `RealPLKSR` beside `PLKSR`; its weights
            are newly initialised.
        arguments: of the architecture's class in spandrel; its scale and colours are filled in.

    Raises:
        RequestError: spandrel is not installed, does not know the architecture, or the arguments do not fit.
    """

    PREFIX: ClassVar[str] = "network."
    """What the state names of the architecture itself begin with here."""
    file_contents: dict[str, str]
    """For a run's identity: the digest of the file that `model.weights` names, where one does."""

    def __init__(self, *, scale: int, architecture: str, arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.file_contents = {}
        built = _build(architecture, scale, dict(arguments or {}))
        try:  # spandrel gives scale and size requirements of a network only when it reads one from its state
            descriptor = _descriptor(built.state_dict())
        except RequestError as error:
            raise RequestError(f"model.arguments={dict(arguments or {})}: {error}") from error
        self._take(descriptor, built)
        if self.scale != scale:
            raise RequestError(f"scale={scale}: model.arguments make {architecture} a network of scale {self.scale}")

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], *, expected: Mapping[str, object] | None = None
    ) -> SpandrelNetwork:
        """The network whose state this is; spandrel recognises it by names and shapes.

        Args:
            expected: what `hyperparameters` was when the state was saved. It decides over the arguments that leave no
                trace in the shapes, which spandrel can only guess.

        Raises:
            RequestError: spandrel is not installed, knows no such network, or it is no colour super-resolution.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.file_contents = {}
        descriptor = _descriptor(state)
        network._take(descriptor, descriptor.model)
        stated, deduced = (expected or {}).get("arguments"), network.hyperparameters()["arguments"]
        if isinstance(stated, dict) and any(deduced.get(name) != value for name, value in stated.items()):
            network._take(descriptor, _rebuild(network.architecture, network.scale, stated, state))
        return network

    def _take(self, descriptor: Any, network: nn.Module) -> None:
        self.network = network
        names = {kind: name for name, kind in _classes().items()}
        self.architecture = names[type(network)]
        self.scale = int(descriptor.scale)
        self._size = descriptor.size_requirements
        window = getattr(network, "window_size", 1)
        self.tile_grid = math.lcm(self._size.multiple_of, window if isinstance(window, int) else 1)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        right, below = self._size.get_padding(width, height)
        # RCAN, for one, multiplies its input in place.
        return upscale_padded(lambda padded: self.network(padded.clone()), lr, right, below)

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments as JSON has them, less what it cannot hold."""
        stored = getattr(self.network, "hyperparameters", {})
        arguments = {}
        for name, value in stored.items():
            with suppress(TypeError, ValueError):
                arguments[name] = json.loads(json.dumps(value))
        return {"scale": self.scale, "architecture": self.architecture, "arguments": arguments}


def _spandrel() -> ModuleType:
    try:
        import spandrel
    except (ImportError, RuntimeError, AttributeError) as error:  # a torchvision that does not fit torch
        raise RequestError(
            f"model=spandrel: spandrel cannot be imported ({error}); expected pip install 'sr-run[spandrel]',"
            " with a torchvision built for this torch"
        ) from error
    module: ModuleType = spandrel
    return module


def _registry() -> Any:
    """spandrel's architectures and, where it is installed, those of spandrel_extra_arches."""
    registry = _spandrel().MAIN_REGISTRY.copy()
    with suppress(ImportError):
        registry.add(*importlib.import_module("spandrel_extra_arches").EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _classes() -> dict[str, type[nn.Module]]:
    """The networks by name; an architecture's module may hold several."""
    modules = [sys.modules[type(each.architecture).__module__] for each in _registry()]
    return {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith(f"{module.__name__}.")
    }


def _build(architecture: str, scale: int, arguments: dict[str, Any]) -> nn.Module:
    known = _classes()
    network_class = known.get(architecture)
    if network_class is None:
        several = [name for name, kind in known.items() if f".{architecture}." in kind.__module__]
        hint = f" It means one of {', '.join(several)}." if several else nearest(architecture, known)
        extra = importlib.util.find_spec("spandrel_extra_arches") is not None
        raise RequestError(
            f"model.architecture={architecture}: spandrel has no such network"
            + ("." if extra else ", and spandrel_extra_arches is not installed.")
            + (hint or f" It knows {', '.join(known)}.")
        )
    parameters = inspect.signature(network_class).parameters
    scale_argument = next((name for name in _SCALE_ARGUMENTS if name in parameters), None)
    if scale_argument:
        arguments.setdefault(scale_argument, scale)
    for name in _CHANNEL_ARGUMENTS:
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            arguments.setdefault(name, 3)
    for name in arguments:
        if name not in parameters:
            raise RequestError(
                f"model.arguments.{name}: {architecture} has no such argument.{nearest(name, parameters)}"
            )
    try:
        network: nn.Module = network_class(**arguments)
    except Exception as error:  # someone else's constructor: a missing or wrong value can raise anything
        raise RequestError(f"model.arguments={arguments}: {architecture} refuses them ({error})") from error
    return network


def _rebuild(architecture: str, scale: int, arguments: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    if not all(_is_modest(value) for value in arguments.values()):
        raise RequestError(f"the file's header claims an {architecture} of impossible size: {arguments}")
    with torch.random.fork_rng(devices=[]):
        network = _build(architecture, scale, dict(arguments))
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise RequestError(f"the weights do not fit the {architecture} that the file's header describes") from error
    return network


def _is_modest(value: object) -> bool:
    """No network worth building has a width or depth beyond; what a file claims must not fill the memory."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_is_modest(item) for item in value)
    return not isinstance(value, int | float) or abs(value) <= 1024


def _descriptor(state: Mapping[str, Tensor]) -> Any:
    registry = _registry()
    try:
        with torch.random.fork_rng(devices=[]):
            descriptor = registry.load(dict(state))
    except Exception as error:  # deducing a network from an unfit state can raise anything
        raise RequestError(f"spandrel recognises no network in these weights ({type(error).__name__})") from error
    channels = (descriptor.input_channels, descriptor.output_channels)
    if descriptor.purpose != "SR" or channels != (3, 3):
        raise RequestError(
            f"{descriptor.architecture.id} ({descriptor.purpose}, {channels[0]} to {channels[1]} channels)"
            " is not a network for super-resolution of colour images"
        )
    return descriptor
