"""A weights file of any layout that sr-run knows, as the network that it is and a state in sr-run's names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sr_runner.errors import RequestError
from sr_runner.weights import keras, layouts, shapes
from sr_runner.weights.digests import digest
from sr_runner.weights.sources import read_source, shown
from sr_runner.weights.tensorfile import TensorFile

Hyperparameters = dict[str, int | float]


@dataclass(frozen=True)
class LoadedWeights:
    """What a file holds. `network` is a name in `sr_runner.models.NETWORKS`, `discriminator`, `spandrel` or None."""

    source: str
    """The path or URL as it was given, for messages."""
    layout: str
    """`sr-run`, `EDSR-PyTorch`, `BasicSR`, `krasserm (Keras)`, or `state dict` for names that sr-run does not know."""
    network: str | None
    state: dict[str, Tensor]
    """In sr-run's names and orders, floating point as fp32, on the CPU; a `state dict`'s own names otherwise."""
    hyperparameters: Hyperparameters = field(default_factory=dict)
    """What the file states, together with what the caller gave."""
    assumed: Hyperparameters = field(default_factory=dict)
    """What the file does not state, but its layout's code has as its default; the caller may give another value."""
    target: str | None = None
    """Of sr-run's own files of someone else's network: its class."""
    target_arguments: dict[str, Any] = field(default_factory=dict)
    """What the run gave that class, in a file that `sr-ckpt export` wrote; in a checkpoint its config has them."""

    @property
    def arguments(self) -> Hyperparameters:
        """All that is known of the network: what is stated counts before what is assumed."""
        return self.assumed | self.hyperparameters

    @property
    def unknown(self) -> tuple[str, ...]:
        """The hyperparameters that neither the file nor the caller states."""
        names = shapes.SHAPELESS.get(self.network or "", ())
        return tuple(name for name in names if name not in self.arguments)

    @property
    def digest(self) -> str:
        """Equal for equal weights of an equal network, wherever the file lies."""
        return digest(self.state, self.network, sorted(self.arguments.items()))

    def __str__(self) -> str:
        known = ", ".join(f"{k}={_text(v)}" for k, v in (self.hyperparameters | self.assumed).items())
        return (
            f"{self.source} ({self.layout}: {self.network or self.target or 'unknown network'}{known and f', {known}'})"
        )


def read(source: str | Path, **what_the_file_cannot_tell: float) -> LoadedWeights:
    """Recognise the weights in a file or behind an http(s) URL, by their contents.

    `what_the_file_cannot_tell` are hyperparameters such as `res_block_scaling`; a value that contradicts the file is an
    error. Without them, `unknown` of the result names what is missing.

    Raises:
        RequestError: there is no such file, it is damaged, or it does not fit the network that it looks like.
    """
    file = read_source(source)
    try:
        weights = _recognise(shown(source), file)
    except ValueError as error:  # also the RequestError of a network that cannot be built as the file wants it
        raise RequestError(f"{shown(source)}: {error}") from error
    return _with(weights, what_the_file_cannot_tell)


def _recognise(source: str, file: TensorFile) -> LoadedWeights:
    if "sr_run" in file.metadata:
        return _own(source, file)
    found = keras.layers(file.tensors)
    if network := keras.recognise(found):
        stated: Hyperparameters = {"rgb_range": keras.RGB_RANGE} if network == "edsr" else {}
        return _known(source, "krasserm (Keras)", network, keras.convert(network, found), stated)
    for state in layouts.unwrapped(file.tensors, "model."):
        if layouts.is_edsr_pytorch(state):
            renamed, rgb_range = layouts.from_edsr_pytorch(state)
            return _known(source, "EDSR-PyTorch", "edsr", renamed, {"rgb_range": rgb_range})
        if network := layouts.basicsr_network(state):
            weights = _known(source, "BasicSR", network, layouts.basicsr(network, state), {})
            return replace(weights, assumed={"rgb_range": layouts.RGB_RANGE} if network == "edsr" else {})
        if network := shapes.recognise(state):
            return _known(source, "sr-run", network, state, {})
    return LoadedWeights(source, "state dict", None, file.tensors)


def _known(source: str, layout: str, network: str, state: dict[str, Tensor], stated: Hyperparameters) -> LoadedWeights:
    return LoadedWeights(source, layout, network, state, shapes.infer(network, state) | stated)


def _own(source: str, file: TensorFile) -> LoadedWeights:
    """A file with sr-run's header. The header counts only for what the tensors do not show."""
    try:
        header = json.loads(file.metadata["sr_run"])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("is damaged: its sr_run header is not a JSON object")
    network, stated = header.get("network"), header.get("hyperparameters", {})
    if not isinstance(stated, dict) or not isinstance(network, str | None):
        raise ValueError("is damaged: its sr_run header has no network or hyperparameters of the right kind")
    if network in (None, "spandrel"):
        target, arguments = header.get("target"), header.get("arguments", {})
        if not isinstance(arguments, dict):
            raise ValueError("is damaged: its sr_run header has arguments that are not a JSON object")
        return LoadedWeights(
            source, "sr-run", network, file.tensors, stated,
            target=str(target) if target else None, target_arguments=arguments,
        )  # fmt: skip
    if network not in shapes.CLASSES:
        raise ValueError(f"holds a network '{network}', which this release of sr-run does not know")
    inferred = shapes.infer(network, file.tensors)
    for name, value in inferred.items():
        if name in stated and stated[name] != value:
            raise ValueError(f"is damaged: its header has {name}={stated[name]}, its tensors {value}")
    shapeless = {name: stated[name] for name in shapes.SHAPELESS[network] if name in stated}
    for name, value in shapeless.items():
        if not isinstance(value, int | float):
            raise ValueError(f"is damaged: its header has {name}={value!r}")
    shapes.check_shapes(network, inferred | shapeless, file.tensors)
    return LoadedWeights(source, "sr-run", network, file.tensors, inferred | shapeless)


def _with(weights: LoadedWeights, given: dict[str, float]) -> LoadedWeights:
    if not given:
        return weights
    if weights.network not in shapes.CLASSES:
        name = next(iter(given))
        raise RequestError(
            f"{weights} holds {len(weights.state)} tensors ({', '.join([*weights.state][:3])}, ...) in no layout whose"
            f" arguments sr-run knows, so it cannot take {name}={_text(given[name])}"
        )
    possible = tuple(dict.fromkeys([*weights.hyperparameters, *shapes.SHAPELESS[weights.network]]))
    for name, value in given.items():
        if name not in possible:
            raise RequestError(f"{name}={_text(value)}: {weights} has no such argument, only {', '.join(possible)}")
        if name in weights.hyperparameters and weights.hyperparameters[name] != value:
            raise RequestError(f"{name}={_text(value)}: but {weights}")
    return replace(weights, hyperparameters=weights.hyperparameters | given)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
