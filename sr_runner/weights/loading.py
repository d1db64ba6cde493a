"""Ready networks out of weights files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError
from sr_runner.models.spandrel_network import SpandrelNetwork
from sr_runner.models.vgg import VGG19Features, convolutions
from sr_runner.weights import keras, layouts, shapes
from sr_runner.weights.applying import apply
from sr_runner.weights.reading import LoadedWeights, read
from sr_runner.weights.sources import KERAS_VGG19_URL, download, read_source, shown

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
"""torchvision's VGG19 (IMAGENET1K_V1); its SHA-256 begins with the hash in the name, which is checked."""


def load_model(source: str | Path, *, prefix: str = "", **what_the_file_cannot_tell: float) -> nn.Module:
    """The super-resolution network in a weights file, in evaluation mode, on the CPU: [0, 1] RGB in and out.

    Args:
        source: a file of any recognised layout, or an http(s) URL.
        prefix: what stands before the name of an argument in messages, such as `model.` on a command line.
        what_the_file_cannot_tell: hyperparameters without which the file's network is not complete, such as
            `res_block_scaling=0.1` for EDSR's large model.

    Raises:
        RequestError: the file is damaged or unknown, or does not state something that has to be given.
    """
    weights = read(source, **what_the_file_cannot_tell)
    if weights.network == "discriminator":
        raise RequestError(f"{weights} is an SRGAN discriminator, which makes no images")
    if weights.network not in shapes.CLASSES:
        return _of_spandrel(weights)
    if weights.unknown:
        raise RequestError(
            f"{weights} does not state {' and '.join(weights.unknown)}: expected"
            f" {', '.join(prefix + _ADVICE[name] for name in weights.unknown)}"
        )
    with torch.random.fork_rng(devices=[]):  # no draws from the global generator
        built = shapes.CLASSES[weights.network](**weights.arguments)
    apply(built, weights)
    return built.eval()


_ADVICE = {
    "res_block_scaling": "res_block_scaling=1.0 (usual, and EDSR's baseline) or 0.1 (EDSR's large model)",
    "rgb_range": "rgb_range=255 (EDSR-PyTorch, BasicSR, sr-run's default) or 2 (krasserm)",
}


def vgg19_features(
    *, layer: str = "VGG54", weights: str | Path | None = None, seed: int | None = None
) -> VGG19Features:
    """VGG19 up to `layer` (such as `VGG54`) with trained weights, frozen, in evaluation mode.

    Args:
        weights: a file in torchvision's or Keras' layout, each used with its own input normalisation. None takes
            torchvision's from torch.hub's folder, or downloads them there (548 MB, hash checked).
        seed: take random weights from this seed instead. For tests and smoke runs: no perceptual loss.

    Raises:
        RequestError: the file is no VGG19, or there is none and no network; the message names where to get one.
    """
    if seed is not None:
        return VGG19Features.seeded(seed, layer=layer)
    source = _vgg19_file() if weights is None else weights
    tensors = read_source(source).tensors
    state = keras.convert_vgg19(keras.layers(tensors))
    network = VGG19Features(layer=layer, normalisation="torchvision" if state is None else "keras")
    if state is None:
        state = layouts.strip_prefixes(tensors)
    if (odd := _not_of_vgg19(state)) is not None:
        raise RequestError(f"{shown(source)}: another VGG, not VGG19, as it has a {odd}")
    for key, expected in network.state_dict().items():
        if key not in state or state[key].shape != expected.shape:
            raise RequestError(
                f"{shown(source)}: not a VGG19 in torchvision's or Keras' layout (no {key} of the right shape)"
            )
        if not torch.isfinite(state[key]).all():
            raise RequestError(f"{shown(source)}: a VGG19 whose {key} has values that are not finite")
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    return network.eval()


def _not_of_vgg19(state: Mapping[str, Tensor]) -> str | None:
    """A convolution where VGG19 has none; VGG16 begins like it, so that a file of it is enough for VGG22."""
    known = {f"{name}.weight" for name, _, _ in convolutions()}
    return next((key for key in state if re.fullmatch(r"features\.\d+\.weight", key) and key not in known), None)


def _vgg19_file() -> Path:
    try:
        # The name under which torch.hub and torchvision would keep it, so that a copy of theirs is found.
        return download(VGG19_URL, file_name=VGG19_URL.rsplit("/", 1)[1])
    except RequestError as error:
        raise RequestError(
            f"VGG19's weights could not be downloaded. Get {VGG19_URL} (torchvision) or"
            f" {KERAS_VGG19_URL} (Keras) and name the file"
        ) from error


def spandrel_network(
    *,
    scale: int,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
) -> SpandrelNetwork:
    """One of spandrel's networks, by name and newly initialised, or as a file or URL holds it.

    Args:
        scale: what it has to enlarge by.
        architecture: spandrel's name of it; with `weights`, a check of what the file holds.
        arguments: of the architecture's class; not together with `weights`, whose shapes determine them.
        weights: a file or URL to start from.

    Raises:
        RequestError: neither or too much is given, spandrel is not installed, or the file holds something else.
    """
    if weights is None:
        if architecture is None:
            raise RequestError("model=spandrel: expected model.architecture=NAME or model.weights=FILE")
        return SpandrelNetwork(scale=scale, architecture=architecture, arguments=arguments)
    if arguments:
        raise RequestError("model.arguments: not together with model.weights, whose shapes determine them")
    try:
        loaded = read(weights)
        network = _spandrel_from(loaded)
    except RequestError as error:
        raise RequestError(f"model.weights={weights}: {error}") from error
    if architecture is not None and network.architecture != architecture:
        raise RequestError(f"model.architecture={architecture}: but {weights} holds {network.architecture}")
    if network.scale != scale:
        raise RequestError(f"scale={scale}: but {weights} holds a network of scale {network.scale}")
    network.file_contents = {"weights": loaded.digest}
    return network


def _spandrel_from(weights: LoadedWeights) -> SpandrelNetwork:
    state = layouts.strip_prefixes(weights.state)
    state = {name.removeprefix(SpandrelNetwork.PREFIX): tensor for name, tensor in state.items()}
    return SpandrelNetwork.from_state(state, expected=weights.hyperparameters)


def _of_spandrel(weights: LoadedWeights) -> nn.Module:
    """Networks that spandrel recognises; everything else ends here with what could be done."""
    if weights.target:
        raise RequestError(
            f"{weights}: a network of your own: expected network={weights.target}, since a file does not decide which"
            " code is imported and run"
        )
    try:
        return _spandrel_from(weights).eval()
    except RequestError as error:
        first = ", ".join(list(weights.state)[:3])
        raise RequestError(
            f"{weights.source}: {len(weights.state)} tensors ({first}, ...) in no layout that sr-run knows ({error})."
            " Of a network of your own: expected network=package.module.Class"
        ) from error
