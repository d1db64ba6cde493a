"""Weights into networks: strict, matching, and the transfer between scales."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR, NETWORKS, WDSRB, Discriminator
from sr_runner.weights import LoadedWeights, MisfitError

SMALL = {"num_filters": 8, "num_res_blocks": 2}


def image() -> Tensor:
    return torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(1))


def small(name: str, scale: int) -> nn.Module:
    extra = {"res_block_expansion": 4} if name.startswith("wdsr") else {}
    return NETWORKS[name](scale=scale, **SMALL, **extra)


def saved(network: nn.Module, folder) -> LoadedWeights:
    return weights.read(weights.export(network, folder / "model.safetensors"))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def assert_unchanged(network: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_strict_loading_makes_a_network_give_the_same_image(tmp_path, name):
    one, other = small(name, 2), small(name, 2)
    report = weights.apply(other, saved(one, tmp_path))
    assert torch.equal(other.eval()(image()), one.eval()(image()))
    assert set(report.loaded) == set(one.state_dict()) and not report.skipped and not report.new


def test_strict_loading_names_the_hyperparameters_that_differ_and_what_to_set(tmp_path):
    network = EDSR(scale=4, num_filters=16, num_res_blocks=2)
    before = state_of(network)
    with pytest.raises(RequestError) as error:
        weights.apply(network, saved(EDSR(scale=2, num_filters=8, num_res_blocks=3), tmp_path))
    assert "edsr with scale=2 (not 4), num_filters=8 (not 16), num_res_blocks=3 (not 2)" in str(error.value)
    assert "Set scale=2 model.num_filters=8 model.num_res_blocks=3" in str(error.value)
    assert isinstance(error.value, MisfitError) and error.value.rule == "matching"
    assert_unchanged(network, before)


def test_a_scale_alone_that_differs_points_to_the_transfer_of_the_body(tmp_path):
    with pytest.raises(MisfitError, match=r"Set scale=2$") as error:
        weights.apply(EDSR(scale=4, **SMALL), saved(EDSR(scale=2, **SMALL), tmp_path))
    assert error.value.rule == "body"


def test_a_different_residual_scaling_is_noticed_though_the_shapes_agree(tmp_path):
    with pytest.raises(RequestError, match=r"res_block_scaling=0\.1 \(not 1\)\. Set model\.res_block_scaling=0\.1"):
        weights.apply(EDSR(scale=2, **SMALL), saved(EDSR(scale=2, res_block_scaling=0.1, **SMALL), tmp_path))


def test_another_network_is_refused_by_name(tmp_path):
    to_set = r"set model=wdsr_b scale=2 model\.num_filters=8 model\.num_res_blocks=2 model\.res_block_expansion=6"
    with pytest.raises(RequestError, match=f"does not fit edsr: {to_set}"):
        weights.apply(EDSR(scale=2, **SMALL), saved(WDSRB(scale=2, res_block_expansion=6, **SMALL), tmp_path))
    with pytest.raises(RequestError, match=r"edsr: objective\.discriminator_weights takes it"):
        weights.apply(EDSR(scale=2, **SMALL), saved(Discriminator(patch_size=16, num_filters=2), tmp_path))


@pytest.mark.parametrize(("old", "new"), [(2.0, 255.0), (255.0, 2.0), (1.0, 255.0)])
def test_weights_of_another_internal_range_give_the_same_image(tmp_path, old, new):
    trained = EDSR(scale=2, rgb_range=old, **SMALL)
    network = EDSR(scale=2, rgb_range=new, **SMALL)
    report = weights.apply(network, saved(trained, tmp_path))
    torch.testing.assert_close(network(image()), trained(image()), atol=1e-6, rtol=1e-5)
    assert report.notes == [f"biases moved from rgb_range {old:g} to {new:g}"]


def test_from_x2_to_x4_edsr_keeps_head_body_and_tail_and_gets_a_new_upsampler(tmp_path):
    trained, network = EDSR(scale=2, **SMALL), EDSR(scale=4, **SMALL)
    before = state_of(network)
    report = weights.apply(network, saved(trained, tmp_path), rule="body")
    for name, tensor in network.state_dict().items():
        source = before if name.startswith("upsampler.") else trained.state_dict()
        assert torch.equal(tensor, source[name]), name
    assert report.new == ["upsampler.0.weight", "upsampler.0.bias", "upsampler.2.weight", "upsampler.2.bias"]
    assert [name for name, _ in report.skipped] == ["upsampler.0.bias", "upsampler.0.weight"]
    lines = list(report.lines())
    assert "  new: upsampler.2.weight" in lines and "body.0.conv1.weight" in report.loaded
    assert "  skipped: upsampler.0.weight (belongs to the upsampler)" in lines


@pytest.mark.parametrize("name", ["edsr", "wdsr_a", "wdsr_b", "srresnet", "msrresnet"])
@pytest.mark.parametrize(("old", "new"), [(2, 4), (2, 3), (4, 2)])
def test_every_network_transfers_between_scales(tmp_path, name, old, new):
    trained, network = small(name, old), small(name, new)
    report = weights.apply(network, saved(trained, tmp_path), rule="body")
    assert all(torch.equal(network.state_dict()[k], trained.state_dict()[k]) for k in report.loaded)
    assert "body.0.conv1.bias" in report.loaded
    assert {k.split(".")[0] for k in report.new} == ({"tail", "skip"} if name.startswith("wdsr") else {"upsampler"})


def test_the_transfer_wants_everything_but_the_upsampler_to_fit(tmp_path):
    with pytest.raises(RequestError, match=r"num_res_blocks=3 \(not 2\)\. Set model\.num_res_blocks=3"):
        weights.apply(
            EDSR(scale=4, **SMALL), saved(EDSR(scale=2, num_filters=8, num_res_blocks=3), tmp_path), rule="body"
        )
    with pytest.raises(RequestError, match="Sequential does not state which tensors"):
        weights.apply(nn.Sequential(), saved(EDSR(scale=2, **SMALL), tmp_path), rule="body")


def test_matching_takes_what_fits_and_says_what_became_of_the_rest(tmp_path):
    trained, network = EDSR(scale=2, num_filters=8, num_res_blocks=3), EDSR(scale=4, **SMALL)
    report = weights.apply(network, saved(trained, tmp_path), rule="matching")
    assert "body.1.conv2.weight" in report.loaded and "upsampler.0.weight" in report.loaded
    assert ("body.3.weight", "the network has no such tensor") in report.skipped
    assert "body.2.weight" in report.new  # a block there, the last convolution here
    skipped = dict(report.skipped)
    assert skipped.keys() | set(report.loaded) == trained.state_dict().keys()
    assert set(report.new) | set(report.loaded) == network.state_dict().keys()


def test_matching_names_the_shapes_that_differ(tmp_path):
    report = weights.apply(
        EDSR(scale=2, num_filters=16, num_res_blocks=2), saved(EDSR(scale=2, **SMALL), tmp_path), rule="matching"
    )
    assert ("head.weight", "8x3x3x3 in the file, 16x3x3x3 in the network") in report.skipped
    assert report.loaded == ["tail.bias"]


def test_matching_nothing_at_all_is_an_error(tmp_path):
    with pytest.raises(RequestError, match=r"none of its \d+ tensors fits"):
        weights.apply(nn.Linear(3, 3), saved(EDSR(scale=2, **SMALL), tmp_path), rule="matching")


def test_weights_go_through_the_wrappers_of_compile_and_data_parallel(tmp_path):
    trained, network = small("wdsr_a", 2), small("wdsr_a", 2)
    weights.apply(nn.DataParallel(torch.compile(network)), saved(trained, tmp_path))
    assert torch.equal(network(image()), trained(image()))
    assert weights.describe(torch.compile(trained)) == weights.describe(trained)


def test_someone_elses_network_loads_its_own_state_and_reports_misfits_by_name(tmp_path):
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 3, 3))

    torch.save({"state_dict": build(4).state_dict()}, tmp_path / "own.ckpt")
    loaded = weights.read(tmp_path / "own.ckpt")
    assert (loaded.layout, loaded.network) == ("state dict", None)
    network = build(4)
    weights.apply(network, loaded)
    assert torch.equal(network[0].weight, loaded.state["0.weight"])
    with pytest.raises(RequestError, match=r"0\.weight \(4x3x3x3 in the file, 5x3x3x3 in the network\)"):
        weights.apply(build(5), loaded)


class Wrapper(nn.Module):
    """Its own names begin as if a wrapper had added them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize("saved_as", ["", "module.", "_orig_mod.", "model."])
def test_someone_elses_names_are_taken_as_they_are_or_without_those_of_wrappers(tmp_path, saved_as):
    trained, network = Wrapper(), Wrapper()
    torch.save({saved_as + k: v for k, v in trained.state_dict().items()}, tmp_path / "w.pth")
    report = weights.apply(network, weights.read(tmp_path / "w.pth"))
    assert report.loaded == ["module.weight", "module.bias"]
    assert torch.equal(network.module.weight, trained.module.weight)


def test_numbers_of_another_kind_do_not_fit(tmp_path):
    torch.save({"weight": torch.ones(3, 3, dtype=torch.int8), "bias": torch.ones(3)}, tmp_path / "quantised.pth")
    loaded = weights.read(tmp_path / "quantised.pth")
    with pytest.raises(RequestError, match=r"weight \(torch.int8 in the file, torch.float32 in the network\)$"):
        weights.apply(nn.Linear(3, 3), loaded)
    assert weights.apply(nn.Linear(3, 3), loaded, rule="matching").loaded == ["bias"]


def test_what_the_file_does_not_tell_and_the_network_decides_is_noted(tmp_path):
    network = EDSR(scale=2, res_block_scaling=0.1, **SMALL)
    loaded = weights.read(weights.export(network, tmp_path / "edsr.pt", "edsr-pytorch"))
    note = "the file does not state res_block_scaling: model.res_block_scaling=0.1 is used"
    assert weights.apply(network, loaded).notes == [note]
    assert f"  note: {note}" in weights.apply(network, loaded).lines()


def test_the_digest_of_weights_is_that_of_their_content(tmp_path):
    torch.manual_seed(0)
    first, second = EDSR(scale=2, **SMALL), EDSR(scale=2, **SMALL)
    weights.export(first, tmp_path / "a.safetensors")
    weights.export(first, tmp_path / "b.pt", "basicsr")
    weights.export(second, tmp_path / "c.safetensors")
    a, b, c = (weights.read(path) for path in sorted(tmp_path.iterdir()))
    (tmp_path / "a.safetensors").rename(tmp_path / "moved")
    assert weights.read(tmp_path / "moved").digest == a.digest != c.digest
    assert weights.read(tmp_path / "b.pt", res_block_scaling=1.0).digest == a.digest  # another layout
    assert weights.read(tmp_path / "b.pt", res_block_scaling=0.1).digest != a.digest
    assert weights.read(tmp_path / "b.pt", rgb_range=2.0).digest != b.digest


def test_parameters_stay_the_same_objects_in_their_memory_format_and_type(tmp_path):
    network = copy.deepcopy(EDSR(scale=2, **SMALL)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    parameters = dict(network.named_parameters())
    weights.apply(network, saved(EDSR(scale=2, **SMALL), tmp_path))
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name] and parameter.dtype == torch.bfloat16 and parameter.requires_grad
    assert network.body[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"rule=mathcing: .* Did you mean 'matching'"):
        weights.apply(EDSR(scale=2, **SMALL), saved(EDSR(scale=2, **SMALL), tmp_path), rule="mathcing")
