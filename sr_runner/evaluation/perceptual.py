"""LPIPS and DISTS, which compare features of a pre-trained network rather than pixels. Lower is better.

Both come from their authors' packages, which bring or download weights. Images go in whole, with the same border
cropped as for PSNR.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from sr_runner.errors import RequestError
from sr_runner.evaluation.metrics import UInt8Image, cropped
from sr_runner.inference.tiling import to_unit_range

Distance = Callable[[UInt8Image, UInt8Image], float]
"""SR and HR, uint8 H x W x 3, to a distance."""


def perceptual_distance(name: str, *, crop: int, device: torch.device | str) -> Distance:
    """`lpips` (Zhang et al. 2018, v0.1 on AlexNet) or `dists` (Ding et al. 2020).

    Raises `RequestError` that names the extra where its package is missing, and where its weights cannot be downloaded.
    """
    package = {"lpips": "lpips", "dists": "DISTS_pytorch"}[name]
    try:
        module = importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise RequestError(
            f"metrics={name} needs the package {package} and cannot load it ({error}): pip install 'sr-run[{name}]'"
        ) from error
    try:
        network = module.LPIPS(net="alex", verbose=False) if name == "lpips" else module.DISTS()
    except OSError as error:
        raise RequestError(
            f"metrics={name}: the ImageNet weights beneath it cannot be downloaded ({error}). On a machine that can, "
            f"torchvision puts them into {torch.hub.get_dir()}/checkpoints; copy them there."
        ) from error
    network = network.to(device).eval()
    # LPIPS was trained on [-1, 1], DISTS on [0, 1].
    gain, offset = (2.0, -1.0) if name == "lpips" else (1.0, 0.0)

    def distance(sr: UInt8Image, hr: UInt8Image) -> float:
        # PSNR has accepted the pair by now, so that its name does not matter here.
        images = (to_unit_range(image, device) * gain + offset for image in cropped("", sr, hr, crop))
        with torch.no_grad():
            return float(network(*images))

    return distance
