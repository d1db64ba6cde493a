"""spandrel's networks where spandrel can be imported, and the refusal where it cannot."""

from __future__ import annotations

import sys

import pytest
import torch

import sr_runner.weights as weights
from sr_runner.errors import RequestError

SMALL = {
    "ESRGAN": {"num_blocks": 1, "num_filters": 8},
    "RealPLKSR": {"dim": 8, "n_blocks": 1, "kernel_size": 5, "norm_groups": 2},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16},
    "SPAN": {"feature_channels": 8},
    "SwinIR": {
        "img_size": 32,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 8,
        "upsampler": "pixelshuffle",
    },
}


def image() -> torch.Tensor:
    return torch.rand(1, 3, 13, 17, generator=torch.Generator().manual_seed(1))


def test_without_spandrel_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(RequestError, match=r"pip install 'sr-run\[spandrel\]'"):
        weights.spandrel_network(scale=4, architecture="SwinIR")


def test_a_network_by_name_or_from_a_file_has_to_be_given():
    with pytest.raises(RequestError, match=r"expected model\.architecture=NAME or model\.weights=FILE"):
        weights.spandrel_network(scale=4)
    with pytest.raises(RequestError, match=r"model\.arguments: not together with model\.weights"):
        weights.spandrel_network(scale=4, weights="x.pth", arguments={"a": 1})


@pytest.mark.parametrize("architecture", SMALL)
def test_a_network_by_name_enlarges_any_size_and_trains(architecture):
    network = weights.spandrel_network(scale=4, architecture=architecture, arguments=SMALL[architecture])
    lr = image()
    before = lr.clone()
    sr = network(lr)
    assert sr.shape == (1, 3, 52, 68) and torch.equal(lr, before)
    sr.square().mean().backward()
    assert any(p.grad is not None for p in network.parameters())


def test_every_network_of_spandrels_modules_has_a_name():
    with pytest.raises(RequestError, match="It knows ") as refused:
        weights.spandrel_network(scale=4, architecture="0")
    known = str(refused.value).partition("It knows ")[2].rstrip(".").split(", ")
    assert {"PLKSR", "RealPLKSR", "KBNet_s", "UpCunet2x_fast", "ESRGAN", "SwinIR"} <= {*known}


def test_those_of_spandrel_extra_arches_are_among_them(tmp_path):
    pytest.importorskip("spandrel_extra_arches")
    small = {"img_size": 32, "window_size": 8, "embed_dim": 12, "depths": [2], "num_heads": [2]}
    arguments = {**small, "upsampler": "pixelshuffle"}
    network = weights.spandrel_network(scale=2, architecture="SRFormer", arguments=arguments).eval()
    path = weights.export(network, tmp_path / "own.safetensors")
    assert torch.equal(weights.load_model(path)(image()), network(image()))


@pytest.mark.parametrize("architecture", SMALL)
def test_a_published_file_and_our_own_give_the_same_pixels(tmp_path, architecture):
    network = weights.spandrel_network(scale=4, architecture=architecture, arguments=SMALL[architecture]).eval()
    expected = network(image())
    torch.save({"params": network.network.state_dict()}, tmp_path / "published.pth")
    own = weights.export(network, tmp_path / "own.safetensors")
    undeducible = architecture == "RealPLKSR"  # its norm_groups, which only a header states
    for path in (own,) if undeducible else (tmp_path / "published.pth", own):
        assert torch.equal(weights.load_model(path)(image()), expected)
        tuned = weights.spandrel_network(scale=4, weights=path)
        assert torch.equal(tuned.eval()(image()), expected)
        weights.apply(tuned, weights.read(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "SwimIR"}, "has no such network.* Did you mean 'SwinIR'"),
        ({"architecture": "RealCUGAN"}, "has no such network.* It means one of UpCunet2x, UpCunet2x_fast, UpCunet3x"),
        ({"architecture": "RCAN", "arguments": {"n_feat": 8}}, r"model.arguments.n_feat: .* Did you mean 'n_feats'"),
        (
            {"architecture": "SwinIR", "arguments": SMALL["SwinIR"] | {"img_size": 8}},
            r"model\.arguments={'img_size': 8, .*: spandrel recognises no network",
        ),
        (
            {"architecture": "GRL"},
            r"model\.arguments={}: GRL \(Restoration, 3 to 3 channels\) is not a network",
        ),
        ({"architecture": "RCAN", "arguments": {"scale": 2}}, "model.arguments make RCAN a network of scale 2"),
    ],
)
def test_a_request_that_spandrel_cannot_meet_is_refused(arguments, message):
    with pytest.raises(RequestError, match=message):
        weights.spandrel_network(scale=4, **arguments)


def test_a_file_of_another_scale_is_refused(tmp_path):
    network = weights.spandrel_network(scale=2, architecture="SPAN", arguments=SMALL["SPAN"])
    path = weights.export(network, tmp_path / "span.safetensors")
    with pytest.raises(RequestError, match=r"scale=4: but .* holds a network of scale 2"):
        weights.spandrel_network(scale=4, weights=path)
