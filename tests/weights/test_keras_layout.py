"""Files of krasserm/super-resolution give the same pixels here as there."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
import torch
import weight_originals as originals
from safetensors.torch import save_file
from torch import Tensor

import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR, WDSRA, WDSRB, Discriminator, SRResNet

LR = np.random.default_rng(1).integers(0, 256, (1, 8, 6, 3)).astype(np.float64)


def nchw(images: np.ndarray) -> Tensor:
    return torch.tensor(images / 255, dtype=torch.float32).permute(0, 3, 1, 2)


def assert_same_pixels(network: torch.nn.Module, expected: np.ndarray) -> None:
    with torch.no_grad():
        sr = network(nchw(LR)).permute(0, 2, 3, 1).double().numpy() * 255
    assert np.std(expected) > 5
    np.testing.assert_allclose(sr, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_an_edsr_file_gives_the_originals_pixels(tmp_path, scale, scaling):
    expected, layers = originals.keras_edsr(LR, scale, 8, 3, scaling)
    network = weights.load_model(originals.write_h5(tmp_path / "w.h5", layers), res_block_scaling=scaling)
    assert isinstance(network, EDSR) and network.rgb_range == 2.0
    assert_same_pixels(network, expected)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize(("kind", "cls", "expansion"), [("a", WDSRA, 4), ("b", WDSRB, 6)])
def test_a_wdsr_file_gives_the_originals_pixels(tmp_path, kind, cls, expansion, scale):
    expected, layers = originals.keras_wdsr(LR, kind, scale, 10, 2, expansion, 0.5)
    network = weights.load_model(originals.write_h5(tmp_path / "w.h5", layers), res_block_scaling=0.5)
    assert type(network) is cls
    assert network.hyperparameters()["res_block_expansion"] == expansion
    assert_same_pixels(network, expected)


def test_weight_norm_gains_that_keras_had_not_set_yet_are_set_as_it_would(tmp_path):
    expected, layers = originals.keras_wdsr(LR, "a", 2, 8, 1, 2, 1.0, called=False)
    network = weights.load_model(originals.write_h5(tmp_path / "w.h5", layers), res_block_scaling=1)
    assert_same_pixels(network, expected)


def test_an_srgan_generator_file_gives_the_originals_pixels(tmp_path):
    expected, layers = originals.keras_srresnet(LR, 8, 3)
    network = weights.load_model(originals.write_h5(tmp_path / "w.h5", layers))
    assert isinstance(network, SRResNet) and network.scale == 4
    assert_same_pixels(network, expected)


@pytest.mark.parametrize("patch", [16, 32, 48])
def test_a_discriminator_file_gives_the_originals_verdicts(tmp_path, patch):
    hr = np.random.default_rng(2).integers(0, 256, (2, patch, patch, 3)).astype(np.float64)
    expected, layers = originals.keras_discriminator(hr, 4)
    loaded = weights.read(originals.write_h5(tmp_path / "w.h5", layers))
    assert loaded.network == "discriminator"
    assert loaded.hyperparameters == {"patch_size": patch, "num_filters": 4}
    network = Discriminator(patch_size=patch, num_filters=4)
    weights.apply(network, loaded)
    np.testing.assert_allclose(torch.sigmoid(network.eval()(nchw(hr))).detach().numpy(), expected, atol=1e-5)
    with pytest.raises(RequestError, match="discriminator, which makes no images"):
        weights.load_model(tmp_path / "w.h5")


@pytest.mark.parametrize(
    "form", [{"chunk": 2}, {"group": "model_weights"}, {"inside": "conv2d_7/"}], ids=["long", "whole-model", "nested"]
)
def test_the_forms_that_keras_gives_a_file_make_no_difference(tmp_path, form):
    expected, layers = originals.keras_wdsr(LR, "b", 2, 5, 2, 2, 1.0)
    path = originals.write_h5(tmp_path / "w.h5", layers, **form)
    assert_same_pixels(weights.load_model(path, res_block_scaling=1), expected)


def test_a_whole_saved_model_is_read_beside_its_optimizers_state(tmp_path):
    expected, layers = originals.keras_edsr(LR, 2, 8, 2, 1.0)
    path = originals.write_h5(tmp_path / "w.h5", layers, group="model_weights")
    with h5py.File(path, "a") as file:
        file.create_group("optimizer_weights").attrs["weight_names"] = [b"Adam/conv2d/kernel/m:0"]
        file["optimizer_weights/Adam/conv2d/kernel/m:0"] = np.ones((3, 3, 3, 8))
    assert_same_pixels(weights.load_model(path, res_block_scaling=1), expected)


def test_layer_numbers_that_do_not_begin_at_zero_make_no_difference(tmp_path):
    expected, layers = originals.keras_edsr(LR, 4, 8, 3, 1.0)
    renumbered = [(f"conv2d_{i + 96}" if name.startswith("conv2d") else name, w) for i, (name, w) in enumerate(layers)]
    path = originals.write_h5(tmp_path / "w.h5", renumbered)
    assert_same_pixels(weights.load_model(path, res_block_scaling=1), expected)


@pytest.mark.parametrize("network", ["edsr", "wdsr_a", "wdsr_b", "srresnet"])
def test_safetensors_with_keras_names_need_no_order_of_layers(tmp_path, network):
    build = {
        "edsr": lambda: originals.keras_edsr(LR, 4, 8, 6, 1.0),
        "wdsr_a": lambda: originals.keras_wdsr(LR, "a", 2, 5, 6, 2, 1.0),
        "wdsr_b": lambda: originals.keras_wdsr(LR, "b", 2, 5, 4, 2, 1.0),
        "srresnet": lambda: originals.keras_srresnet(LR, 8, 6),
    }
    expected, layers = build[network]()
    tensors = {f"{name}/{key}:0": torch.tensor(value) for name, layer in layers for key, value in layer.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    loaded = weights.read(tmp_path / "w.safetensors")
    assert loaded.network == network
    told = {"res_block_scaling": 1.0} if loaded.unknown else {}
    assert_same_pixels(weights.load_model(tmp_path / "w.safetensors", **told), expected)


def test_layers_that_do_not_add_up_to_the_network_are_refused(tmp_path):
    _, layers = originals.keras_srresnet(LR, 8, 3)
    for missing in ("conv2d_3", "batch_normalization_2", "p_re_lu"):
        kept = [layer for layer in layers if layer[0] != missing]
        with pytest.raises(RequestError, match=r"the (layers|weights) look like those of .*srresnet"):
            weights.read(originals.write_h5(tmp_path / "w.h5", kept))


@pytest.mark.parametrize("network", ["edsr", "wdsr_a", "wdsr_b"])
def test_a_file_that_lacks_any_one_layer_is_refused(tmp_path, network):
    build = {
        "edsr": lambda: originals.keras_edsr(LR, 2, 4, 1, 1.0),
        "wdsr_a": lambda: originals.keras_wdsr(LR, "a", 2, 5, 1, 2, 1.0),
        "wdsr_b": lambda: originals.keras_wdsr(LR, "b", 2, 5, 1, 2, 1.0),
    }
    _, layers = build[network]()
    for missing in [name for name, layer in layers if layer]:
        kept = [layer for layer in layers if layer[0] != missing]
        tensors = {f"{name}/{key}:0": torch.tensor(value) for name, layer in kept for key, value in layer.items()}
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(RequestError):
            weights.load_model(tmp_path / "w.safetensors", res_block_scaling=1.0)


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    _, layers = originals.keras_edsr(LR, 2, 4, 1, 1.0)
    path = originals.write_h5(tmp_path / "w.h5", layers)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(RequestError, match=r"pip install 'sr-run\[keras-weights\]'"):
        weights.read(path)
