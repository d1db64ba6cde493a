"""The features of VGG19 (Simonyan and Zisserman, 2015) that SRGAN compares images by. No torchvision needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sr_runner.errors import check_choice

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and number of convolutions of each block; a 2x2 max pooling lies between blocks."""

LAYERS = {
    f"VGG{block}{conv}": (block, conv)
    for block, (_, count) in enumerate(BLOCKS, start=1)
    for conv in range(1, count + 1)
}
"""Name -> (block, convolution): the features are what follows that convolution's ReLU."""

# Mean and divisor of an RGB image in [0, 1]. Keras' weights take 0..255 minus the mean (and BGR: when they are
# converted, the first kernel is reversed instead).
NORMALISATIONS = {
    "torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "keras": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
}


class VGG19Features(nn.Module):
    """N x 3 x H x W RGB in [0, 1] -> features, such as N x 128 x H/2 x W/2 (VGG22) or N x 512 x H/16 x W/16 (VGG54).

    Frozen: its parameters take no gradients, though its input's gradients pass through. State names are
    torchvision's (`features.0.weight`, ...). Built empty: load a state, or take `seeded`.

    Args:
        layer: the last, one of `LAYERS`.
        normalisation: the input that the weights were trained for, `torchvision` or `keras`.

    Raises:
        RequestError: there is no such layer.
    """

    def __init__(self, *, layer: str = "VGG54", normalisation: str = "torchvision") -> None:
        super().__init__()
        check_choice("layer", layer, LAYERS)
        self.layer, self.normalisation = layer, normalisation
        mean, divisor = NORMALISATIONS[normalisation]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("divisor", torch.tensor(divisor).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.divisor: Tensor
        self.features = nn.Sequential(*_layers(layer))
        self.requires_grad_(False)

    @classmethod
    def seeded(cls, seed: int, *, layer: str = "VGG54") -> VGG19Features:
        """Random weights that keep the size of activations (Kaiming), the same for the same seed.

        For tests and smoke runs: such features compare textures a little, but are no perceptual loss.
        """
        network = cls(layer=layer)
        generator = torch.Generator().manual_seed(seed)
        for module in network.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution of VGG has one
        return network.eval()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features((images - self.mean) / self.divisor)
        return features


def convolutions(layer: str = "VGG54") -> list[tuple[str, str, tuple[int, int]]]:
    """(torchvision's name, Keras' layer name, (in, out) channels) of each convolution that `layer` needs."""
    result, index, channels = [], 0, 3
    last_block, last_conv = LAYERS[layer]
    for block, (width, count) in enumerate(BLOCKS[:last_block], start=1):
        for conv in range(1, (last_conv if block == last_block else count) + 1):
            result.append((f"features.{index}", f"block{block}_conv{conv}", (channels, width)))
            index, channels = index + 2, width
        index += 1
    return result


def _layers(layer: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for name, _, (inputs, outputs) in convolutions(layer):
        if name != f"features.{len(layers)}":  # a new block
            layers.append(nn.MaxPool2d(2))
        # Uninitialised: the weights come from a file, and no draw is taken from the global generator.
        conv: nn.Conv2d = skip_init(nn.Conv2d, inputs, outputs, 3, padding=1)  # type: ignore[no-untyped-call]
        layers += [conv, nn.ReLU(inplace=True)]
    return layers
