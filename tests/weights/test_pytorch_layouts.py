"""Files of EDSR-PyTorch and BasicSR give the same pixels here as there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import weight_originals as originals
from safetensors.torch import save_file
from torch import Tensor, nn

import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR, MSRResNet

CLOSE = 0.03 / 255


def image() -> Tensor:
    return torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("res_scale", [1.0, 0.1])
def test_an_edsr_pytorch_file_gives_the_originals_pixels(tmp_path, scale, res_scale):
    original = originals.scrambled(originals.EdsrPytorch(scale, 8, 3, res_scale))
    path = save(tmp_path / "edsr.pt", original.state_dict())
    network = weights.load_model(path, res_block_scaling=res_scale)
    assert isinstance(network, EDSR) and not network.training
    expected = original(image() * 255) / 255
    assert expected.std() > 0.02
    torch.testing.assert_close(network(image()), expected, atol=CLOSE, rtol=0)
    assert network.hyperparameters() == {
        "scale": scale,
        "num_filters": 8,
        "num_res_blocks": 3,
        "res_block_scaling": res_scale,
        "rgb_range": 255.0,
    }


def test_the_internal_range_of_an_edsr_pytorch_file_is_read_from_its_mean_shift(tmp_path):
    original = originals.scrambled(originals.EdsrPytorch(2, 8, 1, 1.0, rgb_range=1))
    network = weights.load_model(save(tmp_path / "edsr.pt", original.state_dict()), res_block_scaling=1.0)
    assert network.rgb_range == 1.0
    torch.testing.assert_close(network(image()), original(image()), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("img_range", [None, 1.0])
def test_a_basicsr_edsr_file_gives_the_originals_pixels(tmp_path, scale, img_range):
    original = originals.scrambled(originals.BasicSrEdsr(scale, 8, 3, 0.1, img_range or 255.0))
    path = save(tmp_path / "edsr.pth", {"params": original.state_dict()})
    told = {} if img_range is None else {"rgb_range": img_range}
    network = weights.load_model(path, res_block_scaling=0.1, **told)
    assert isinstance(network, EDSR)
    torch.testing.assert_close(network(image()), original(image()), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_basicsr_msrresnet_file_gives_the_originals_pixels(tmp_path, scale):
    original = originals.scrambled(originals.BasicSrMsrResNet(scale, 8, 2))
    network = weights.load_model(save(tmp_path / "msr.pth", {"params": original.state_dict()}))
    assert isinstance(network, MSRResNet)
    torch.testing.assert_close(network(image()), original(image()), atol=CLOSE, rtol=0)


def test_basicsrs_averaged_weights_are_taken_before_the_raw_ones(tmp_path):
    raw, averaged = (originals.scrambled(originals.BasicSrMsrResNet(2, 4, 1), seed) for seed in (1, 2))
    both = {"params": raw.state_dict(), "params_ema": averaged.state_dict()}
    network = weights.load_model(save(tmp_path / "msr.pth", both))
    torch.testing.assert_close(network(image()), averaged(image()), atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model."]
)
@pytest.mark.parametrize(
    "original", [originals.EdsrPytorch(2, 4, 1, 1.0), originals.BasicSrEdsr(2, 4, 1, 1.0), EDSR(scale=2, num_filters=4)]
)
def test_the_prefixes_of_wrappers_make_no_difference(tmp_path, prefix, original):
    state = original.state_dict()
    plain = weights.read(save(tmp_path / "plain.pt", state))
    wrapped = weights.read(save(tmp_path / "wrapped.pt", {prefix + k: v for k, v in state.items()}))
    assert wrapped.layout == plain.layout and wrapped.network == "edsr"
    assert wrapped.state.keys() == plain.state.keys()
    assert all(torch.equal(wrapped.state[k], plain.state[k]) for k in plain.state)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"epoch": torch.tensor(3), "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}},
        lambda state: {"model": {"state_dict": state}, "step": 7},
        lambda state: {"params": {k: -v for k, v in state.items()}, "params_ema": state},
        lambda state: {k: nn.Parameter(v) for k, v in state.items()},
        lambda state: {k: v.double() for k, v in state.items()},
        lambda state: {k: v.mT.contiguous().mT if v.dim() == 4 else v for k, v in state.items()},
    ],
    ids=["checkpoint", "nested", "averaged", "parameters", "float64", "non-contiguous"],
)
def test_the_forms_that_training_codes_give_a_state_make_no_difference(tmp_path, wrapped):
    original = originals.scrambled(originals.EdsrPytorch(2, 4, 2, 1.0))
    network = weights.load_model(save(tmp_path / "w.pth", wrapped(original.state_dict())), res_block_scaling=1.0)
    torch.testing.assert_close(network(image()) * 255, original(image() * 255), atol=0.03, rtol=0)
    assert not any(v.requires_grad for v in weights.read(tmp_path / "w.pth").state.values())


def test_blocks_that_share_one_tensor_are_read_as_if_each_had_its_own(tmp_path):
    original = originals.scrambled(originals.EdsrPytorch(2, 8, 6, 1.0))
    for block in original.body[1:6]:
        block.body[0].weight = original.body[0].body[0].weight
        block.body[2].weight = original.body[0].body[0].weight
    path = save(tmp_path / "tied.pt", original.state_dict())
    network = weights.load_model(path, res_block_scaling=1.0)
    torch.testing.assert_close(network(image()) * 255, original(image() * 255), atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("original", "layout"),
    [(originals.EdsrPytorch(3, 4, 2, 1.0), "EDSR-PyTorch"), (originals.BasicSrEdsr(3, 4, 2, 1.0), "BasicSR")],
)
def test_safetensors_with_their_names_are_recognised_too(tmp_path, original, layout, dtype):
    state = {k: v.to(dtype) for k, v in original.state_dict().items()}
    save_file(state, tmp_path / "edsr.safetensors")
    loaded = weights.read(tmp_path / "edsr.safetensors")
    assert (loaded.layout, loaded.network) == (layout, "edsr")
    assert loaded.hyperparameters | {"rgb_range": 255} == {
        "scale": 3, "num_filters": 4, "num_res_blocks": 2, "rgb_range": 255,
    }  # fmt: skip
    assert all(v.dtype == torch.float32 for v in loaded.state.values())


def test_the_file_format_that_torch_wrote_before_1_6_is_read(tmp_path):
    original = originals.scrambled(originals.EdsrPytorch(2, 4, 1, 1.0))
    torch.save(original.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    network = weights.load_model(tmp_path / "old.pt", res_block_scaling=1)
    torch.testing.assert_close(network(image()) * 255, original(image() * 255), atol=0.03, rtol=0)


def test_what_the_file_cannot_tell_is_asked_for_by_name(tmp_path):
    path = save(tmp_path / "edsr.pt", originals.EdsrPytorch(2, 4, 1, 1.0).state_dict())
    assert weights.read(path).unknown == ("res_block_scaling",)
    with pytest.raises(
        RequestError, match=r"edsr\.pt .* does not state res_block_scaling: expected res_block_scaling=1\.0"
    ):
        weights.load_model(path)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"num_filters": 64}, "num_filters=64: but .* num_filters=4"),
        ({"res_block_scalling": 1}, "res_block_scalling=1: .* no such argument, only .*res_block_scaling"),
        ({"rgb_range": 1.0}, "rgb_range=1: but .* rgb_range=255"),
        ({"res_scale": 0.1}, "res_scale=0.1: .* no such argument, only scale, .*res_block_scaling"),
        ({"res_block_scaling": "abc"}, "res_block_scaling='abc': expected a number"),
        ({"res_block_scaling": float("nan")}, "res_block_scaling=nan: expected a number"),
    ],
)
def test_saying_otherwise_than_the_file_is_an_error(tmp_path, told, message):
    path = save(tmp_path / "edsr.pt", originals.EdsrPytorch(2, 4, 1, 1.0).state_dict())
    with pytest.raises(RequestError, match=message):
        weights.load_model(path, **({"res_block_scaling": 1.0} | told))


def _without(network: nn.Module, name: str) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if k != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_without(originals.EdsrPytorch(2, 4, 2, 1), "body.1.body.2.weight"), "lack body.1.conv2.weight"),
        (_without(originals.BasicSrEdsr(2, 4, 2, 1), "conv_last.bias"), "lack tail.bias"),
        (originals.EdsrPytorch(2, 4, 1, 1).state_dict() | {"body.9.odd": torch.zeros(1)}, "also hold body.9.odd"),
        (originals.BasicSrEdsr(2, 4, 1, 1).state_dict() | {"conv_first.weight": torch.zeros(4, 1, 3, 3)}, "3 colour"),
        (
            originals.BasicSrEdsr(2, 4, 1, 1).state_dict() | {"upsample.0.weight": torch.zeros(17, 4, 3, 3)},
            "17 channels",
        ),
        (originals.BasicSrEdsr(2, 4, 1, 1).state_dict() | {"conv_first.weight": torch.zeros(0, 3, 3, 3)}, "do not fit"),
        (originals.EdsrPytorch(2, 4, 1, 1).state_dict() | {"sub_mean.bias": torch.zeros(3)}, "sub_mean"),
    ],
)
def test_a_state_that_is_almost_a_network_names_the_tensor(tmp_path, state, message):
    with pytest.raises(RequestError, match=rf"edsr\.pt: the weights look like .*{message}"):
        weights.read(save(tmp_path / "edsr.pt", state))
