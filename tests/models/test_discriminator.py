from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sr_runner.errors import RequestError
from sr_runner.models import Discriminator, PatchDiscriminator, UNetDiscriminator


def test_at_96_pixels_it_has_the_srgan_discriminators_parameters():
    with torch.device("meta"):
        network = Discriminator(patch_size=96)
    assert sum(p.numel() for p in network.parameters()) == 23_565_505


@pytest.mark.parametrize("patch", [16, 32, 48, 96])
def test_it_judges_patches_of_any_size_that_16_divides(patch):
    network = Discriminator(patch_size=patch, num_filters=2)
    logits = network(torch.rand(3, 3, patch, patch))
    assert logits.shape == (3, 1)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_channels_last_images_get_the_same_verdict():
    network = Discriminator(patch_size=32, num_filters=4).eval()
    patches = torch.rand(2, 3, 32, 32)
    last = network.to(memory_format=torch.channels_last)(patches.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, network(patches), atol=1e-5, rtol=1e-4)


def test_its_logits_are_not_bounded_by_a_sigmoid():
    network = Discriminator(patch_size=16, num_filters=2).eval()
    with torch.no_grad():
        network.dense2.bias.fill_(7.0)
        assert float(network(torch.rand(1, 3, 16, 16))) > 1


def test_keras_initialisation_has_no_biases():
    network = Discriminator(patch_size=16, num_filters=2, initialization="keras")
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("patch", [0, 8, 100])
def test_a_patch_that_16_does_not_divide_is_refused(patch):
    with pytest.raises(RequestError, match=f"data.patch_size={patch}: .* multiple of 16, such as 96"):
        Discriminator(patch_size=patch)


def test_an_image_of_another_size_than_it_was_built_for_is_refused():
    with pytest.raises(ValueError, match="built for patches of 16 pixels, not 32x32"):
        Discriminator(patch_size=16, num_filters=2)(torch.rand(1, 3, 32, 32))


def test_the_u_net_has_real_esrgans_parameters_and_a_logit_for_each_pixel():
    network = UNetDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == 4_376_897
    small = UNetDiscriminator(num_filters=2)
    logits = small(torch.rand(2, 3, 16, 24))
    assert logits.shape == (2, 1, 16, 24)
    logits.sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    with pytest.raises(ValueError, match="patches of 12 x 16 pixels: expected a multiple of 8"):
        small(torch.rand(1, 3, 12, 16))


def test_the_u_net_computes_what_the_authors_does():
    """Their forward pass, written out over the same kernels."""
    network = UNetDiscriminator(num_filters=2).eval()

    def conv(layer, x):
        return F.leaky_relu(F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding), 0.2)

    def larger(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    images = torch.rand(1, 3, 16, 16)
    x0 = conv(network.head, images)
    x1 = conv(network.down[0], x0)
    x2 = conv(network.down[1], x1)
    x3 = conv(network.down[2], x2)
    x4 = conv(network.up[0], larger(x3)) + x2
    x5 = conv(network.up[1], larger(x4)) + x1
    x6 = conv(network.up[2], larger(x5)) + x0
    out = conv(network.body[1], conv(network.body[0], x6))
    expected = F.conv2d(out, network.tail.weight, network.tail.bias, padding=1)
    torch.testing.assert_close(network(images), expected)
    largest = torch.linalg.matrix_norm(network.down[0].weight.flatten(1), 2)
    assert 0.9 < largest < 1.2


def test_a_logit_of_the_patch_discriminator_sees_70_pixels():
    network = PatchDiscriminator(num_filters=2).eval()
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = network(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = images.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [70, 70]
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633


@pytest.mark.parametrize("kind", [Discriminator, UNetDiscriminator, PatchDiscriminator])
@pytest.mark.parametrize("count", [0, 9000])
def test_a_number_of_filters_that_nobody_means_is_refused(kind, count):
    with pytest.raises(RequestError, match=rf"objective\.discriminator\.num_filters={count}: expected 1 to 8192"):
        kind(num_filters=count)
