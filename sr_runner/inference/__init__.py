"""Networks at work: images of any size, in bounded memory."""

from sr_runner.inference.tiling import OVERLAP, TILE, Interrupted, Upscale, upscale_image

__all__ = ["OVERLAP", "TILE", "Interrupted", "Upscale", "upscale_image"]
