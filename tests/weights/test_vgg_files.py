"""VGG19 from torchvision's and Keras' files, and what happens without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import weight_originals as originals
from torch import Tensor
from torch.nn import functional as F

import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR

WIDTHS = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"]


def image(size: int = 32) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def torchvision_state(blocks: int) -> dict[str, Tensor]:
    """As torchvision numbers `vgg19().features`, random, up to the end of a block."""
    generator = torch.Generator().manual_seed(0)
    state, index, channels = {}, 0, 3
    for width in WIDTHS[: [i for i, w in enumerate(WIDTHS) if w == "M"][blocks - 1]]:
        if width == "M":
            index += 1
            continue
        weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.full((width,), 0.05)}
        index, channels = index + 2, width
    return state


def torchvision_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, index, layers = (images - mean) / std, 0, 0
    for width in WIDTHS:
        if f"features.{index}.weight" not in state and width != "M":
            break
        if width == "M":
            if layers == len(state) // 2:
                break
            x, index = F.max_pool2d(x, 2), index + 1
        else:
            x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
            index, layers = index + 2, layers + 1
    return x


@pytest.mark.parametrize(("layer", "blocks", "shape"), [("VGG22", 2, (128, 16, 16)), ("VGG54", 5, (512, 2, 2))])
def test_torchvisions_file_gives_the_originals_features(tmp_path, layer, blocks, shape):
    state = torchvision_state(blocks)
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg19.pth")
    network = weights.vgg19_features(layer=layer, weights=tmp_path / "vgg19.pth")
    features = network(image())
    assert features.shape[1:] == shape and features.std() > 0.05
    torch.testing.assert_close(features, torchvision_features(state, image()), atol=1e-4, rtol=1e-4)


KERAS_NAMES = ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"]


def write_keras_vgg22(
    path: Path, suffixes: tuple[str, str], more: Sequence[originals.Layer] = ()
) -> list[tuple[np.ndarray, np.ndarray]]:
    random, channels, kernels, layers = np.random.default_rng(0), 3, [], [("input_1", {})]
    for name, width in zip(KERAS_NAMES, (64, 64, 128, 128), strict=True):
        size = (2 / (9 * channels)) ** 0.5 / (100 if channels == 3 else 1)
        kernel = (random.standard_normal((3, 3, channels, width)) * size).astype(np.float32)
        kernels.append((kernel, np.full(width, 0.05, np.float32)))
        layers += [(name, {name + suffixes[0]: kernel, name + suffixes[1]: kernels[-1][1]})]
        channels = width
    originals.write_h5(path, [*layers, *more])
    return kernels


@pytest.mark.parametrize("suffixes", [("_W_1", "_b_1"), ("/kernel", "/bias")])
def test_keras_file_gives_the_originals_features_from_its_own_bgr_input(tmp_path, suffixes):
    kernels = write_keras_vgg22(tmp_path / "vgg19.h5", suffixes)
    network = weights.vgg19_features(layer="VGG22", weights=tmp_path / "vgg19.h5")
    assert network.normalisation == "keras"
    x = image(8).permute(0, 2, 3, 1).double().numpy() * 255
    x = x[..., ::-1] - np.array([103.939, 116.779, 123.68])
    for i, (kernel, bias) in enumerate(kernels):
        x = originals.relu(originals.conv_same(x, kernel) + bias)
        if i == 1:
            x = x.reshape(1, 4, 2, 4, 2, 64).max((2, 4))
    features = network(image(8)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(features, x, atol=1e-3, rtol=1e-3)


def test_features_take_no_training_but_hand_gradients_to_the_image():
    network = weights.vgg19_features(layer="VGG22", seed=0)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = image().requires_grad_()
    network(x).square().mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_seeded_features_are_the_same_for_the_same_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, third = (weights.vgg19_features(layer="VGG22", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first(image()), second(image()))
    assert not torch.equal(first(image()), third(image()))


def test_a_file_without_vgg19_is_refused(tmp_path):
    path = weights.export(EDSR(scale=2, num_filters=4, num_res_blocks=1), tmp_path / "edsr.safetensors")
    with pytest.raises(RequestError, match=r"edsr\.safetensors: not a VGG19 in torchvision's or Keras' layout"):
        weights.vgg19_features(weights=path)
    torch.save(torchvision_state(2), tmp_path / "short.pth")
    with pytest.raises(RequestError, match=r"no features\.10\.weight of the right shape"):
        weights.vgg19_features(layer="VGG54", weights=tmp_path / "short.pth")


def test_a_vgg16_is_refused_though_it_begins_like_vgg19(tmp_path):
    state = torchvision_state(2) | {"features.17.weight": torch.zeros(512, 256, 3, 3)}
    torch.save(state, tmp_path / "vgg16.pth")
    with pytest.raises(RequestError, match=r"vgg16\.pth: another VGG, not VGG19, as it has a features\.17\.weight"):
        weights.vgg19_features(layer="VGG22", weights=tmp_path / "vgg16.pth")
    write_keras_vgg22(
        tmp_path / "vgg16.h5", ("/kernel", "/bias"), [("block4_conv1", {"kernel": np.zeros((3, 3, 256, 512))})]
    )
    with pytest.raises(RequestError, match=r"vgg16\.h5: not a VGG19 in torchvision's or Keras' layout"):
        weights.vgg19_features(layer="VGG22", weights=tmp_path / "vgg16.h5")


def test_a_vgg19_with_values_that_are_not_finite_is_refused(tmp_path):
    state = torchvision_state(2)
    state["features.5.bias"][0] = torch.inf
    torch.save(state, tmp_path / "vgg19.pth")
    with pytest.raises(RequestError, match=r"a VGG19 whose features\.5\.bias has values that are not finite"):
        weights.vgg19_features(layer="VGG22", weights=tmp_path / "vgg19.pth")


def test_an_unknown_layer_is_refused():
    with pytest.raises(RequestError, match=r"layer=VGG45: expected VGG11, .* or VGG54\. Did you mean 'VGG54'"):
        weights.vgg19_features(layer="VGG45", seed=0)


def test_without_a_file_or_a_network_the_error_says_where_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("sr_runner.weights.loading.VGG19_URL", "http://127.0.0.1:9/vgg19-dcbb9e9d.pth")
    with pytest.raises(RequestError, match=r"vgg19-dcbb9e9d\.pth \(torchvision\) or https:.*notop\.h5 \(Keras\)"):
        weights.vgg19_features()


def test_a_copy_that_torch_hub_already_has_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = torchvision_state(2)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth")
    network = weights.vgg19_features(layer="VGG22")
    torch.testing.assert_close(network(image()), torchvision_features(state, image()), atol=1e-4, rtol=1e-4)
