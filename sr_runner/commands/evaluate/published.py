"""Published results, to stand beside measured ones.

Y channel, border crop = scale, LR by MATLAB bicubic, PSNR in dB / SSIM: EDSR (Lim et al. 2017; the baseline as in
EDSR-PyTorch) and WDSR (Yu et al. 2018). DIV2K validation: PSNR on RGB, border crop = scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from sr_runner.models import EDSR, WDSRA, Network


@dataclass(frozen=True)
class Published:
    """What was published for a network on a benchmark; None where nothing was."""

    psnr_y: float | None = None
    ssim_y: float | None = None
    psnr: float | None = None
    """RGB."""

    def __str__(self) -> str:
        if self.psnr is not None:
            return f"{self.psnr:.2f} (RGB)"
        ssim = "" if self.ssim_y is None else f" / {self.ssim_y:.4f}"
        return f"{self.psnr_y:.2f}{ssim}"


_BENCHMARKS = {
    "set5": "Set5",
    "set14": "Set14",
    "b100": "B100",
    "bsd100": "B100",
    "bsds100": "B100",
    "urban100": "Urban100",
    "div2k": "DIV2K",
    "div2kvalid": "DIV2K",
    "div2kvalidhr": "DIV2K",
}

_IMAGES = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "DIV2K": 100}

_COLUMNS = ("Set5", "Set14", "B100", "Urban100", "DIV2K")
_RESULTS: dict[tuple[str, int], tuple[tuple[float | None, ...] | None, ...]] = {
    ("bicubic", 2): ((33.66, 0.9299), (30.24, 0.8688), (29.56, 0.8431), (26.88, 0.8403)),
    ("bicubic", 3): ((30.39, 0.8682), (27.55, 0.7742), (27.21, 0.7385), (24.46, 0.7349)),
    ("bicubic", 4): ((28.42, 0.8104), (26.00, 0.7027), (25.96, 0.6675), (23.14, 0.6577)),
    ("edsr-baseline", 2): ((37.98, 0.9604), (33.57, 0.9174), (32.15, 0.8993), (31.98, 0.9271), (None, None, 34.63)),
    ("edsr-baseline", 3): (None, None, None, None, (None, None, 30.94)),
    ("edsr-baseline", 4): ((32.09, 0.8936), (28.58, 0.7804), (27.56, 0.7354), (26.03, 0.7842), (None, None, 28.97)),
    ("edsr-large", 4): ((32.46, 0.8968), (28.80, 0.7876), (27.71, 0.7420), (26.64, None)),
    ("wdsr-a-16", 2): ((38.08, None), None, (32.23, None), (32.34, None)),
    ("wdsr-a-16", 4): ((32.22, None), None, (27.61, None), (26.21, None)),
}

_NETWORKS: tuple[tuple[str, type[Network], dict[str, float]], ...] = (
    ("edsr-baseline", EDSR, {"num_res_blocks": 16, "num_filters": 64, "res_block_scaling": 1.0}),
    ("edsr-large", EDSR, {"num_res_blocks": 32, "num_filters": 256, "res_block_scaling": 0.1}),
    ("wdsr-a-16", WDSRA, {"num_res_blocks": 16, "num_filters": 32, "res_block_expansion": 4}),
)


def published(network: str | None, scale: int, benchmark: str) -> Published | None:
    """The published result of `network` ("bicubic", or a name from `known_network`) on the folder `benchmark`."""
    row = dict(zip(_COLUMNS, _RESULTS.get((network or "", scale), ()), strict=False))
    figures = row.get(_benchmark(benchmark) or "")
    return None if figures is None else Published(*figures)


def images_of(benchmark: str) -> int | None:
    """How many images the published results on the folder `benchmark` are the means of; None where there are none."""
    return _IMAGES.get(_benchmark(benchmark) or "")


def _benchmark(folder: str) -> str | None:
    return _BENCHMARKS.get(re.sub(r"[^a-z0-9]", "", folder.lower()))


def known_network(network: nn.Module) -> str | None:
    """The name under which results of such a network were published, None where none were."""
    own = network.hyperparameters() if isinstance(network, Network) else {}
    return next(
        (name for name, kind, arguments in _NETWORKS if type(network) is kind and arguments.items() <= own.items()),
        None,
    )
