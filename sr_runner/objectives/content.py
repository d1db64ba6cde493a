"""How far two images are apart by the features of VGG19: SRGAN's content loss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_runner.errors import RequestError, check_choice
from sr_runner.models.vgg import LAYERS
from sr_runner.weights import digest, shown, vgg19_features

log = logging.getLogger(__name__)

CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


def check_content(layer: str, seed: int | None, scale: float, criterion: str) -> None:
    """Raises `RequestError` for arguments of `ContentLoss` that make no sense, whether or not one is made."""
    check_choice("objective.vgg_criterion", criterion, CRITERIA)
    check_choice("objective.vgg_layer", layer, LAYERS)
    if not scale > 0:
        raise RequestError(f"objective.vgg_scale={scale}: expected a number above 0, such as 1/12.75 = 0.0784314")
    if seed is not None and seed < 0:
        raise RequestError(f"objective.vgg_seed={seed}: expected a whole number from 0, or null")


class ContentLoss:
    """`criterion(scale * VGG19(sr), scale * VGG19(hr))`, a scalar in fp32.

    The network is frozen, so it is no part of a checkpoint. It follows the images to their device and memory format,
    and computes in the precision of the autocast that is in force.
    """

    def __init__(
        self,
        *,
        layer: str,
        weights: str | Path | None = None,
        seed: int | None = None,
        scale: float = 1 / 12.75,
        criterion: str = "mse",
        before_activation: bool = False,
    ):
        """`layer`, `weights` and `seed` as `vgg19_features` takes them; `scale` is the factor on the features.

        `before_activation` compares what the layer's convolution gives, without its ReLU, as ESRGAN does.
        Raises `RequestError` for unknown names, and where there are no weights.
        """
        check_content(layer, seed, scale, criterion)
        try:
            self.vgg = vgg19_features(layer=layer, weights=weights, seed=seed)
        except RequestError as error:
            hint = "" if weights else " with objective.vgg_weights; for a smoke test use objective.vgg_seed=0"
            raise RequestError(f"objective.vgg_weights={shown(weights or 'null')}: {error}{hint}") from error
        self.digest = None if seed is not None else digest(self.vgg.state_dict(), self.vgg.normalisation)
        """Of the weights that were read; None for random ones."""
        if weights is not None and seed is not None:
            log.warning("objective.vgg_seed=%s: random features are used instead of objective.vgg_weights", seed)
        if before_activation:
            self.vgg.features = torch.nn.Sequential(*list(self.vgg.features)[:-1])
        self.scale, self.criterion = scale, CRITERIA[criterion]

    def __call__(self, sr: Tensor, hr: Tensor) -> Tensor:
        if self.vgg.mean.device != hr.device:
            channels_last = hr.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            self.vgg = self.vgg.to(hr.device).to(memory_format=layout)
        with torch.no_grad():
            theirs = self.vgg(hr).float()
        return self.criterion(self.vgg(sr).float() * self.scale, theirs * self.scale)
