"""What every built-in network promises."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError
from sr_runner.models import EDSR, NETWORKS, WDSRA, WDSRB, MSRResNet, SRResNet
from sr_runner.models.layers import DIV2K_MEAN

SMALL = {"num_filters": 8, "num_res_blocks": 2}
EVERY = [(name, scale) for name, network in NETWORKS.items() for scale in network.SCALES]


def small(name: str, scale: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    extra = {"res_block_expansion": 4} if name.startswith("wdsr") else {}
    return NETWORKS[name](scale=scale, **SMALL, **extra)


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("build", "counts"),
    [
        (lambda s: EDSR(scale=s, num_res_blocks=8), (779_011, 963_651, 926_723)),
        (lambda s: EDSR(scale=s), (1_369_859, 1_554_499, 1_517_571)),
        (lambda s: EDSR(scale=s, num_filters=256, num_res_blocks=32), (40_729_603, 43_680_003, 43_089_923)),
        (lambda s: WDSRA(scale=s, num_res_blocks=8, res_block_expansion=4), (597_716, 603_221, 610_928)),
        (lambda s: WDSRA(scale=s, num_res_blocks=16, res_block_expansion=4), (1_190_100, 1_195_605, 1_203_312)),
        (lambda s: WDSRB(scale=s, num_res_blocks=32, res_block_expansion=6), (601_876, 607_381, 615_088)),
        (lambda s: MSRResNet(scale=s), (1_369_859, 1_554_499, 1_517_571)),
    ],
    ids=["edsr-8", "edsr-16", "edsr-large", "wdsr-a-8", "wdsr-a-16", "wdsr-b-32", "msrresnet"],
)
def test_parameter_counts_at_x2_x3_x4_are_the_published_ones(build, counts):
    with torch.device("meta"):
        assert tuple(parameters(build(scale)) for scale in (2, 3, 4)) == counts


def test_srresnet_x4_has_the_srgan_generators_parameters_and_batch_norm_buffers():
    network = SRResNet(scale=4)
    assert parameters(network) == 1_550_659
    statistics = [b for name, b in network.named_buffers() if "running" in name]
    assert sum(b.numel() for b in statistics) == 4_224


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_a_network_enlarges_any_image_size_by_its_scale_in_training_and_evaluation(name, scale):
    network = small(name, scale)
    for size in ((2, 3, 6, 5), (1, 3, 1, 1)):
        network.train(size[0] > 1)
        assert network(images(*size)).shape == (size[0], 3, size[2] * scale, size[3] * scale)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_its_hyperparameters_build_the_same_network_again(name, scale):
    network = small(name, scale)
    again = NETWORKS[name](**network.hyperparameters())
    again.load_state_dict(network.state_dict(), strict=True)
    lr = images(1, 3, 5, 4)
    assert torch.equal(again.eval()(lr), network.eval()(lr))
    arguments = set(inspect.signature(NETWORKS[name]).parameters) - {"initialization"}
    assert set(network.hyperparameters()) == arguments


@pytest.mark.parametrize("name", NETWORKS)
def test_a_deep_copy_is_independent_and_keeps_names_and_outputs(name):
    network = small(name, 2).eval()
    twin = copy.deepcopy(network)
    assert list(twin.state_dict()) == list(network.state_dict())
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in network.named_parameters()]
    lr = images(1, 3, 5, 4)
    before = twin(lr)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    assert torch.equal(twin(lr), before)
    assert not torch.equal(network(lr), before)


@pytest.mark.parametrize("name", ["wdsr_a", "wdsr_b"])
def test_weight_norm_begins_with_the_weights_of_the_plain_convolution(name):
    state = small(name, 2).state_dict()
    gains = {k: v for k, v in state.items() if k.endswith("parametrizations.weight.original0")}
    assert len(gains) == 3 + 2 * (2 if name == "wdsr_a" else 3)
    for key, gain in gains.items():
        direction = state[key.replace("original0", "original1")]
        torch.testing.assert_close(gain, direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_last_and_autocast_give_about_the_same_image(name, dtype):
    network = small(name, 2).eval()
    lr = images(2, 3, 8, 8)
    plain = network(lr)
    network = network.to(memory_format=torch.channels_last)
    last = network(lr.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype):
        rough = network(lr)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, plain, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name):
    network = small(name, 2)
    network(images(2, 3, 6, 6)).square().mean().backward()
    for key, p in network.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), key


@pytest.mark.parametrize("name", ["edsr", "wdsr_a", "wdsr_b"])
def test_a_network_without_weights_gives_the_div2k_mean(name):
    network = small(name, 2)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        for key, p in network.named_parameters():
            if key.endswith("original1"):
                p.fill_(1.0)  # a direction needs a length; its gain above is 0
    sr = network(images(1, 3, 4, 4))
    torch.testing.assert_close(sr, torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1).expand_as(sr))


def test_edsr_biases_aside_its_internal_range_does_not_change_the_image():
    one, other = EDSR(scale=2, rgb_range=255, **SMALL), EDSR(scale=2, rgb_range=2, **SMALL)
    with torch.no_grad():
        for key, p in one.named_parameters():
            if key.endswith("bias"):
                p.zero_()
    other.load_state_dict(one.state_dict())
    lr = images(1, 3, 6, 6)
    torch.testing.assert_close(one(lr), other(lr), atol=1e-5, rtol=0)


def test_srresnet_gives_images_inside_0_and_1():
    network = small("srresnet", 4)
    with torch.no_grad():
        network.tail.weight.mul_(1e3)
    sr = network(images(2, 3, 6, 6)).detach()
    assert 0 <= float(sr.min()) < 0.01 and 0.99 < float(sr.max()) <= 1


def test_msrresnet_begins_near_bilinear_upsampling():
    torch.manual_seed(0)
    lr = images(1, 3, 8, 8)
    bilinear = nn.functional.interpolate(lr, scale_factor=2, mode="bilinear")
    assert float((MSRResNet(scale=2)(lr).detach() - bilinear).abs().max()) < 0.01


@pytest.mark.parametrize("name", ["edsr", "wdsr_a", "wdsr_b", "srresnet"])
def test_keras_initialisation_is_glorot_with_zero_biases_and_slopes(name):
    torch.manual_seed(0)
    extra = {"res_block_expansion": 4} if name.startswith("wdsr") else {}
    network = NETWORKS[name](scale=2, num_filters=16, num_res_blocks=1, initialization="keras", **extra)
    for key, p in network.named_parameters():
        if key.endswith("bias") or "act" in key:
            assert not p.any(), key
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fans = (layer.in_channels + layer.out_channels) * layer.kernel_size[0] ** 2
            limit = (6 / fans) ** 0.5
            assert 0.8 * limit < float(layer.weight.detach().abs().max()) <= limit


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EDSR(scale=7), "scale=7: expected 2, 3, 4 or 8 for EDSR"),
        (lambda: WDSRA(scale=1, num_res_blocks=1, res_block_expansion=4), "scale=1: expected 2, 3, 4 or 8 for WDSR-A"),
        (lambda: WDSRB(scale=7, num_res_blocks=1, res_block_expansion=6), "scale=7: expected 2, 3, 4 or 8 for WDSR-B"),
        (lambda: SRResNet(scale=5), "scale=5: expected 2, 3, 4 or 8 for SRResNet"),
        (lambda: MSRResNet(scale=8), "scale=8: expected 2, 3 or 4 for MSRResNet"),
        (lambda: EDSR(scale=2, num_filters=0), "model.num_filters=0: expected a whole number from 1 to 8192 for EDSR"),
        (lambda: EDSR(scale=2, num_res_blocks=1.5), "model.num_res_blocks=1.5: expected a whole number"),
        (lambda: EDSR(scale=2, rgb_range=0), "model.rgb_range=0: expected a number above 0 and at most 65535 for EDSR"),
        (lambda: EDSR(scale=2, res_block_scaling="a"), "model.res_block_scaling='a': expected a number"),
        (
            lambda: WDSRA(scale=2, num_res_blocks=1, res_block_expansion=-1),
            "model.res_block_expansion=-1: expected a whole number from 1 to 8192 for WDSR-A",
        ),
        (
            lambda: WDSRB(scale=2, num_filters=1, num_res_blocks=1, res_block_expansion=6),
            "model.num_filters=1: expected at least 2 for WDSR-B",
        ),
        (lambda: EDSR(scale=2, initialization="kears"), "expected torch or keras. Did you mean 'keras'?"),
    ],
)
def test_impossible_arguments_are_refused_in_one_sentence(build, message):
    with pytest.raises(RequestError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_gives_the_same_image_and_gradients(name):
    network = small(name, 2)
    lr = images(2, 3, 8, 8)
    results = []
    for run in (network, torch.compile(network)):
        network.zero_grad()
        sr = run(lr)
        sr.square().mean().backward()
        results.append([sr.detach(), *(p.grad.clone() for p in network.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)
