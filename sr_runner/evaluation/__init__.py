"""PSNR and SSIM by the field's protocol, tables of them, and pictures of what they mean."""

from sr_runner.evaluation.metrics import METRICS, Score, luma, rgb_psnr, score
from sr_runner.evaluation.protocol import Evaluation, Pair, evaluate, score_pairs
from sr_runner.evaluation.strip import picture_strip

__all__ = [
    "METRICS",
    "Evaluation",
    "Pair",
    "Score",
    "evaluate",
    "luma",
    "picture_strip",
    "rgb_psnr",
    "score",
    "score_pairs",
]
