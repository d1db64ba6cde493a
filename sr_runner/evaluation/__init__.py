"""PSNR and SSIM by the field's protocol, tables of them, and pictures of what they mean."""

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
