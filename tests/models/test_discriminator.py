from __future__ import annotations

import pytest
import torch

from sr_runner.errors import RequestError
from sr_runner.models import Discriminator


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
