"""How far two images are apart by the features of VGG19: the perceptual loss of SRGAN, ESRGAN and their kin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.errors import RequestError, check_choice
from sr_runner.models.vgg import LAYERS, convolutions
from sr_runner.weights import digest, shown, vgg19_features

log = logging.getLogger(__name__)

CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


class PerceptualLoss(nn.Module):
    """The sum over layers of `weight * criterion(scale * VGG19(sr), scale * VGG19(hr))`, in fp32.

    SR and HR are N x 3 x H x W in [0, 1]. VGG19 is frozen, and computes in the precision of the autocast in force.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = ("VGG54",),
        layer_weights: Sequence[float] | None = None,
        vgg_weights: str | Path | None = None,
        vgg_seed: int | None = None,
        scale: float = 1 / 12.75,
        criterion: str = "mse",
        before_activation: bool = False,
    ):
        """Arguments:

        layers: by block and convolution, `VGG54` for the fourth of the fifth block (conv5_4).
        layer_weights: one for each of them; None: 1.
        vgg_weights: a file or URL in torchvision's or Keras' layout; None: torchvision's own from torch.hub.
        vgg_seed: random weights instead, for smoke tests.
        scale: factor on the features.
        criterion: `mse` or `l1`.
        before_activation: what the layers' convolutions give, without ReLU, as ESRGAN compares them.

        Raises `RequestError` for values out of range, and where VGG19 has no weights.
        """
        super().__init__()
        check_choice("criterion", criterion, CRITERIA)
        for layer in layers:
            check_choice("layers", layer, LAYERS)
        own = [1.0] * len(layers) if layer_weights is None else list(layer_weights)
        if not layers or len({*layers}) < len(layers):
            raise RequestError(f"layers={list(layers)}: expected one layer or more, none twice")
        if len(own) != len(layers) or not all(weight > 0 for weight in own):
            raise RequestError(f"layer_weights={own}: expected a number above 0 for each of {len(layers)} layers")
        if not scale > 0:
            raise RequestError(f"scale={scale}: expected a number above 0, such as 1/12.75 = 0.0784314")
        if vgg_seed is not None and vgg_seed < 0:
            raise RequestError(f"vgg_seed={vgg_seed}: expected a whole number from 0, or null")
        try:
            self.vgg = vgg19_features(layer=max(layers), weights=vgg_weights, seed=vgg_seed)
        except RequestError as error:
            hint = "" if vgg_weights else " with vgg_weights; for a smoke test use vgg_seed=0"
            raise RequestError(f"vgg_weights={shown(vgg_weights or 'null')}: {error}{hint}") from error
        if vgg_weights is not None and vgg_seed is not None:
            log.warning("vgg_seed=%s: random features are used instead of vgg_weights", vgg_seed)
        self.file_contents = {
            "vgg_weights": None if vgg_seed is not None else digest(self.vgg.state_dict(), self.vgg.normalisation)
        }
        """For a run's identity: the digest of the weights that were read; None for random ones."""
        self.scale, self.criterion = scale, CRITERIA[criterion]
        self._weights: dict[int, float] = {}
        """By the place of the module in VGG19 whose output is compared."""
        for layer, weight in zip(layers, own, strict=True):
            convolution = int(convolutions(layer)[-1][0].rpartition(".")[2])
            self._weights[convolution if before_activation else convolution + 1] = weight
            if before_activation:  # the next module would overwrite what is compared
                self.vgg.features[convolution + 1] = nn.ReLU()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = self._features(hr)
        terms = [
            weight * self.criterion(mine * self.scale, other * self.scale)
            for weight, mine, other in zip(self._weights.values(), self._features(sr), theirs, strict=True)
        ]
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum()

    def _features(self, images: Tensor) -> list[Tensor]:
        """In the order of `_weights`."""
        found, last = {}, max(self._weights)
        features = (images - self.vgg.mean) / self.vgg.divisor
        for place, module in enumerate(self.vgg.features[: last + 1]):
            features = module(features)
            if place in self._weights:
                found[place] = features.float()
        return [found[place] for place in self._weights]
