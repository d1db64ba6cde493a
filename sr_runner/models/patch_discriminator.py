"""The discriminator of pix2pix (Isola et al., CVPR 2017), PatchGAN: a logit for each overlapping part of a patch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sr_runner.errors import RequestError
from sr_runner.models.layers import check_filters

SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Which parts are a photograph's? N x 3 x P x P RGB in [0, 1] -> N x 1 x Q x Q logits, high for photographs.

    As in pix2pix: `halvings` convolutions of stride 2 and two of stride 1, all 4 x 4, with normalisation in all but the
    first and the last. With three halvings a logit sees 70 x 70 pixels, and Q is P / 8 - 2.

    Args:
        num_filters: channels of the first convolution; each halving doubles them, up to eight times as many.
        halvings: convolutions of stride 2.
        spectral: spectral normalisation (Miyato et al. 2018) instead of BatchNorm.

    Raises:
        RequestError: an argument is out of bounds.
    """

    def __init__(self, *, num_filters: int = 64, halvings: int = 3, spectral: bool = False) -> None:
        super().__init__()
        check_filters(num_filters)
        if not 1 <= halvings <= 6:
            raise RequestError(f"objective.discriminator.halvings={halvings}: expected 1 to 6")
        widths = [num_filters * min(2**level, 8) for level in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, num_filters, 4, 2, padding=1), nn.LeakyReLU(SLOPE)]
        for level in range(1, halvings + 1):
            stride = 2 if level < halvings else 1
            conv = nn.Conv2d(widths[level - 1], widths[level], 4, stride, padding=1, bias=False)
            layers += [spectral_norm(conv)] if spectral else [conv, nn.BatchNorm2d(widths[level])]
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
