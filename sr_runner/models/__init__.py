"""Networks, one file each. Each maps an LR batch N x 3 x H x W in [0, 1] to an SR batch, and does not clip; but for
discriminators and VGG19.

A config's `model._target_` may name any `nn.Module` that does so. `NETWORKS` is not a registry for configs: it lists
the networks that a weights file can describe, since a file states what it holds and never which code to run.
"""

from __future__ import annotations

from sr_runner.models.discriminator import Discriminator
from sr_runner.models.edsr import EDSR
from sr_runner.models.layers import Network
from sr_runner.models.msrresnet import MSRResNet
from sr_runner.models.patch_discriminator import PatchDiscriminator
from sr_runner.models.spandrel_network import SpandrelNetwork
from sr_runner.models.srresnet import SRResNet
from sr_runner.models.unet_discriminator import UNetDiscriminator
from sr_runner.models.vgg import VGG19Features
from sr_runner.models.wdsr import WDSRA, WDSRB

NETWORKS: dict[str, type[Network]] = {
    "edsr": EDSR,
    "wdsr_a": WDSRA,
    "wdsr_b": WDSRB,
    "srresnet": SRResNet,
    "msrresnet": MSRResNet,
}

__all__ = [
    "EDSR",
    "NETWORKS",
    "WDSRA",
    "WDSRB",
    "Discriminator",
    "MSRResNet",
    "Network",
    "PatchDiscriminator",
    "SRResNet",
    "SpandrelNetwork",
    "UNetDiscriminator",
    "VGG19Features",
]
