"""The weights of krasserm/super-resolution: Keras' `save_weights` in HDF5, into sr-run's names and orders.

What differs from PyTorch: kernels are H x W x in x out. Before a pixel shuffle with factor r, TensorFlow's output
channel (i r + j) C + c is torch's c r^2 + i r + j. Weight norm is a wrapper layer with g, kernel (the direction v),
bias and whether g has been set yet. The discriminator flattens H, W, C. PReLU slopes are 1 x 1 x C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from sr_runner.models.vgg import convolutions
from sr_runner.weights.shapes import MisfitError

RGB_RANGE = 2.0
"""krasserm's EDSR works on (x - 255 mean) / 127.5, which is rgb_range 2."""

State = dict[str, Tensor]
Layer = Mapping[str, Tensor]


def layers(tensors: Mapping[str, Tensor]) -> list[tuple[str, Layer]]:
    """(layer name, {"kernel": ..., "bias": ...}) in the order of `tensors`, or [] where the names are not Keras'.

    Keras names a weight `layer/kernel:0`; one inside a wrapper may be `wrapper/layer/kernel:0`.
    """
    parts = [(name.split("/"), tensor) for name, tensor in tensors.items()]
    if not all(len(path) > 1 for path, _ in parts):
        return []
    result: list[tuple[str, Layer]] = []
    for layer, group in groupby(parts, key=lambda part: part[0][0]):
        members = [(path, tensor) for path, tensor in group]
        nested = sum(path[-1].split(":")[0] == "kernel" for path, _ in members) > 1  # a whole model as one layer
        for name, inner in groupby(members, key=lambda m: "/".join(m[0][:-1]) if nested else layer):
            result.append((name, {path[-1].split(":")[0]: tensor for path, tensor in inner}))
    return result


def recognise(found: list[tuple[str, Layer]]) -> str | None:
    """Which network of krasserm/super-resolution these layers make up, judged by their kinds."""
    convs, kinds = _convolutions(found), {weight for _, layer in found for weight in layer}
    if not convs or _is_vgg(found):
        return None
    if all("g" in layer for layer in convs):
        return "wdsr_b" if any(layer["kernel"].shape[:2] == (1, 1) for layer in convs) else "wdsr_a"
    if any(layer["kernel"].dim() == 2 for _, layer in found if "kernel" in layer):
        return "discriminator"
    if {"alpha", "gamma"} <= kinds:
        return "srresnet"
    return "edsr" if kinds == {"kernel", "bias"} else None


def convert(network: str, found: list[tuple[str, Layer]]) -> State:
    """The state of `network` in sr-run's names.

    Raises:
        MisfitError: the layers do not add up to the network.
    """
    converters = {"edsr": _edsr, "srresnet": _srresnet, "discriminator": _discriminator}
    try:
        return converters.get(network, _wdsr)(found)
    except (LookupError, StopIteration, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise MisfitError(f"the layers look like those of krasserm's {network}, but do not add up to it") from error


def convert_vgg19(found: list[tuple[str, Layer]]) -> State | None:
    """Keras' VGG19 in torchvision's names, its first kernel taking RGB instead of BGR; None where it is no VGG19."""
    if not _is_vgg(found):
        return None
    by_name = dict(found)
    if "block4_conv1" in by_name and "block3_conv4" not in by_name:
        return None  # VGG16
    state: State = {}
    for torch_name, keras_name, _ in convolutions():
        tensors = by_name.get(keras_name, {}).values()
        # The published file is older than the names `kernel` and `bias`: it has block1_conv1_W_1 and _b_1.
        kernel, bias = (next((t for t in tensors if t.dim() == dim), None) for dim in (4, 1))
        if kernel is not None and bias is not None:
            state |= {f"{torch_name}.weight": kernel.permute(3, 2, 0, 1), f"{torch_name}.bias": bias}
    if "features.0.weight" in state:
        state["features.0.weight"] = state["features.0.weight"].flip(1)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _is_vgg(found: list[tuple[str, Layer]]) -> bool:
    return bool(found) and {"block1_conv1", "block1_conv2"} <= {name for name, _ in found}


def _edsr(found: list[tuple[str, Layer]]) -> State:
    convs = _convolutions(found)
    # By their shapes, not their places: in a file without Keras' order of layers their names put them elsewhere.
    head = next(layer for layer in convs if layer["kernel"].shape[2] == 3)
    tail = next(layer for layer in reversed(convs) if layer["kernel"].shape[3] == 3)
    filters = head["kernel"].shape[3]
    inner = [layer for layer in convs if layer is not head and layer is not tail]
    body = [layer for layer in inner if layer["kernel"].shape[3] == filters]
    upsampler = [layer for layer in inner if layer["kernel"].shape[3] != filters]
    state = _conv("head", head) | _conv("tail", tail) | _conv(f"body.{len(body) // 2}", body[-1])
    for i, layer in enumerate(body[:-1]):
        state |= _conv(f"body.{i // 2}.conv{i % 2 + 1}", layer)
    for i, layer in enumerate(upsampler):
        state |= _conv(f"upsampler.{2 * i}", layer, shuffle_to=filters)
    return state


def _wdsr(found: list[tuple[str, Layer]]) -> State:
    convs = _convolutions(found)
    # The tail and the skip branch lie side by side in Keras' graph, so that either can come first.
    skip = next(layer for layer in convs if layer["kernel"].shape[0] == 5)
    head, *body, tail = [layer for layer in convs if layer is not skip]
    per_block = 3 if any(layer["kernel"].shape[0] == 1 for layer in body) else 2
    state = _normed("head", head) | _normed("tail", tail, shuffle_to=3) | _normed("skip", skip, shuffle_to=3)
    for i, layer in enumerate(body):
        state |= _normed(f"body.{i // per_block}.conv{i % per_block + 1}", layer)
    return state


def _srresnet(found: list[tuple[str, Layer]]) -> State:
    convs = _convolutions(found)
    norms = [layer for _, layer in found if "gamma" in layer]
    slopes = [layer["alpha"].flatten() for _, layer in found if "alpha" in layer]
    blocks = len(norms) // 2
    filters = convs[0]["kernel"].shape[3]
    state = _conv("head", convs[0]) | {"head_act.weight": slopes[0]}
    for i in range(blocks):
        state |= _conv(f"body.{i}.conv1", convs[1 + 2 * i]) | _norm(f"body.{i}.bn1", norms[2 * i])
        state |= {f"body.{i}.act.weight": slopes[1 + i]}
        state |= _conv(f"body.{i}.conv2", convs[2 + 2 * i]) | _norm(f"body.{i}.bn2", norms[2 * i + 1])
    state |= _conv(f"body.{blocks}", convs[1 + 2 * blocks]) | _norm(f"body.{blocks + 1}", norms[2 * blocks])
    for i, layer in enumerate(convs[2 + 2 * blocks : -1]):
        state |= _conv(f"upsampler.{i}.conv", layer, shuffle_to=filters)
        state |= {f"upsampler.{i}.act.weight": slopes[1 + blocks + i]}
    return state | _conv("tail", convs[-1])


def _discriminator(found: list[tuple[str, Layer]]) -> State:
    convs = _convolutions(found)
    norms = [layer for _, layer in found if "gamma" in layer]
    dense1, dense2 = (layer for _, layer in found if "kernel" in layer and layer["kernel"].dim() == 2)
    state: State = {}
    for i, layer in enumerate(convs):
        state |= _conv(f"blocks.{i}.conv", layer)
    for i, layer in enumerate(norms, start=1):
        state |= _norm(f"blocks.{i}.bn", layer)
    inputs, hidden = dense1["kernel"].shape
    channels = convs[-1]["kernel"].shape[3]
    side = math.isqrt(inputs // channels)
    kernel = dense1["kernel"].reshape(side, side, channels, hidden).permute(3, 2, 0, 1)
    state |= {"dense1.weight": kernel.reshape(hidden, inputs).contiguous(), "dense1.bias": dense1["bias"]}
    return state | {"dense2.weight": dense2["kernel"].T.contiguous(), "dense2.bias": dense2["bias"]}


def _convolutions(found: list[tuple[str, Layer]]) -> list[Layer]:
    return [layer for _, layer in found if "kernel" in layer and layer["kernel"].dim() == 4]


def _conv(name: str, layer: Layer, shuffle_to: int = 0) -> State:
    weight = layer["kernel"].permute(3, 2, 0, 1)
    return {
        f"{name}.weight": _torch_order(weight, shuffle_to),
        f"{name}.bias": _torch_order(layer["bias"], shuffle_to),
    }


def _normed(name: str, layer: Layer, shuffle_to: int = 0) -> State:
    direction, gain = layer["kernel"].permute(3, 2, 0, 1), layer["g"]
    if "initialized" in layer and not bool(layer["initialized"].any()):
        gain = direction.flatten(1).norm(dim=1)  # what the wrapper does when it is first called
    return {
        f"{name}.bias": _torch_order(layer["bias"], shuffle_to),
        f"{name}.parametrizations.weight.original0": _torch_order(gain.reshape(-1, 1, 1, 1), shuffle_to),
        f"{name}.parametrizations.weight.original1": _torch_order(direction, shuffle_to),
    }


def _norm(name: str, layer: Layer) -> State:
    return {
        f"{name}.weight": layer["gamma"],
        f"{name}.bias": layer["beta"],
        f"{name}.running_mean": layer["moving_mean"],
        f"{name}.running_var": layer["moving_variance"],
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def _torch_order(tensor: Tensor, shuffle_to: int) -> Tensor:
    """The first dimension, which a pixel shuffle turns into `shuffle_to` channels, from TF's order to torch's."""
    if not shuffle_to:
        return tensor.contiguous()
    return tensor.reshape(-1, shuffle_to, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape).contiguous()
