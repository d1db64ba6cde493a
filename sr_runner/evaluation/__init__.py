"""PSNR and SSIM by the field's protocol, tables of them, and pictures of what they mean.

Importing this imports nothing heavy: `sr-eval --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr_runner.evaluation.metrics import METRICS, Score, luma, rgb_psnr, score
    from sr_runner.evaluation.protocol import Evaluation, Pair, evaluate, evaluate_images
    from sr_runner.evaluation.strip import picture_strip
    from sr_runner.imresize import bicubic_upscale
    from sr_runner.inference.tiling import Interrupted

__all__ = [
    "METRICS",
    "Evaluation",
    "Interrupted",
    "Pair",
    "Score",
    "bicubic_upscale",
    "evaluate",
    "evaluate_images",
    "luma",
    "picture_strip",
    "rgb_psnr",
    "score",
]

_MODULES = {
    "sr_runner.imresize": ("bicubic_upscale",),
    "sr_runner.evaluation.metrics": ("METRICS", "Score", "luma", "rgb_psnr", "score"),
    "sr_runner.evaluation.protocol": ("Evaluation", "Pair", "evaluate", "evaluate_images"),
    "sr_runner.evaluation.strip": ("picture_strip",),
    "sr_runner.inference.tiling": ("Interrupted",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
