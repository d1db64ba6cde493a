"""Weights out to files, and back in there and here."""

from __future__ import annotations

import json

import pytest
import torch
import weight_originals as originals
from safetensors import safe_open
from torch import Tensor, nn

import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR, NETWORKS, WDSRA, Discriminator, MSRResNet, SRResNet


def image() -> Tensor:
    return torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_safetensors_hold_all_that_is_needed_to_build_the_network_again(tmp_path, name, scale):
    torch.manual_seed(0)
    extra = {"res_block_scaling": 0.3} if name in ("edsr", "wdsr_a", "wdsr_b") else {}
    extra |= {"res_block_expansion": 4} if name.startswith("wdsr") else {}
    network = NETWORKS[name](scale=scale, num_filters=6, num_res_blocks=2, **extra)
    network(image().expand(2, -1, -1, -1))  # running statistics
    again = weights.load_model(weights.export(network, tmp_path / "model.safetensors"))
    assert type(again) is type(network) and again.hyperparameters() == network.hyperparameters()
    assert torch.equal(again(image()), network.eval()(image()))


def test_the_header_is_readable_json_beside_what_other_tools_expect(tmp_path):
    path = weights.export(EDSR(scale=2, num_filters=4, num_res_blocks=1), tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["sr_run"]) == {
        "network": "edsr",
        "hyperparameters": {
            "scale": 2,
            "num_filters": 4,
            "num_res_blocks": 1,
            "res_block_scaling": 1.0,
            "rgb_range": 255.0,
        },
    }


class Net(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)


def test_someone_elses_network_comes_back_into_an_instance_of_it(tmp_path):
    network = Net()
    path = weights.export(network, tmp_path / "net.safetensors")
    loaded = weights.read(path)
    assert loaded.network is None and loaded.target.endswith("test_exporting.Net")
    with pytest.raises(RequestError, match=r"a network of your own: expected network=.*test_exporting\.Net, since"):
        weights.load_model(path)
    again = Net()
    weights.apply(again, loaded)
    assert torch.equal(again(image()), network(image()))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("rgb_range", [255.0, 2.0])
def test_edsr_exported_to_edsr_pytorch_gives_the_same_pixels_there(tmp_path, caplog, scale, rgb_range):
    network = EDSR(scale=scale, num_filters=6, num_res_blocks=2, res_block_scaling=0.1, rgb_range=rgb_range)
    path = weights.export(network, tmp_path / "edsr.pt", "edsr-pytorch")
    assert "set res_scale=0.1 there" in caplog.text
    original = originals.EdsrPytorch(scale, 6, 2, 0.1)
    original.load_state_dict(torch.load(path, weights_only=True), strict=True)
    torch.testing.assert_close(original(image() * 255), network(image()) * 255, atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("rgb_range", [255.0, 2.0])
def test_edsr_exported_to_basicsr_gives_the_same_pixels_there(tmp_path, scale, rgb_range):
    network = EDSR(scale=scale, num_filters=6, num_res_blocks=2, rgb_range=rgb_range)
    path = weights.export(network, tmp_path / "edsr.pth", "basicsr")
    original = originals.BasicSrEdsr(scale, 6, 2, 1.0)
    original.load_state_dict(torch.load(path, weights_only=True)["params"], strict=True)
    torch.testing.assert_close(original(image()), network(image()), atol=0.03 / 255, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet_exported_to_basicsr_gives_the_same_pixels_there(tmp_path, scale):
    network = MSRResNet(scale=scale, num_filters=6, num_res_blocks=2)
    path = weights.export(network, tmp_path / "msr.pth", "basicsr")
    original = originals.BasicSrMsrResNet(scale, 6, 2)
    original.load_state_dict(torch.load(path, weights_only=True)["params"], strict=True)
    torch.testing.assert_close(original(image()), network(image()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", ["basicsr", "edsr-pytorch"])
def test_a_round_trip_through_a_layout_changes_no_tensor(tmp_path, layout):
    network = EDSR(scale=4, num_filters=6, num_res_blocks=3)
    back = weights.read(weights.export(network, tmp_path / "file", layout))
    assert back.state.keys() == network.state_dict().keys()
    assert all(torch.equal(back.state[k], v) for k, v in network.state_dict().items())


def test_a_discriminator_is_described_and_read_like_any_network(tmp_path):
    network = Discriminator(patch_size=16, num_filters=2)
    loaded = weights.read(weights.export(network, tmp_path / "d.safetensors"))
    assert (loaded.network, loaded.hyperparameters) == ("discriminator", {"patch_size": 16, "num_filters": 2})
    other = Discriminator(patch_size=32, num_filters=2)
    with pytest.raises(RequestError, match=r"patch_size=16 \(not 32\)\. Set data\.patch_size=16"):
        weights.apply(other, loaded)


@pytest.mark.parametrize(
    ("network", "layout", "message"),
    [
        (
            WDSRA(scale=2, num_filters=4, num_res_blocks=1, res_block_expansion=4),
            "basicsr",
            "it has only EDSR and MSRResNet, not WDSRA: use safetensors",
        ),
        (SRResNet(scale=4, num_filters=4), "edsr-pytorch", "it has only EDSR, not SRResNet"),
        (Net(), "basicsr", "not Net"),
        (EDSR(scale=2, num_filters=4), "basicSR", "layout=basicSR: expected .* Did you mean 'basicsr'"),
    ],
)
def test_a_layout_that_has_no_such_network_is_refused(tmp_path, network, layout, message):
    with pytest.raises(RequestError, match=message):
        weights.export(network, tmp_path / "x", layout)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        weights.export(Net(), tmp_path / "file" / "m.safetensors")


def test_tied_weights_are_written_twice_rather_than_refused(tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    loaded = weights.read(weights.export(network, tmp_path / "tied.safetensors"))
    assert torch.equal(loaded.state["0.weight"], loaded.state["1.weight"])
