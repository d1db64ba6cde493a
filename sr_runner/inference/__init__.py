"""Networks at work: images of any size, in bounded memory.

Importing this imports nothing heavy: `sr-upscale --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr_runner.inference.tiling import OVERLAP, TILE, Interrupted, Upscale, upscale_image, upscale_tiled

__all__ = ["OVERLAP", "TILE", "Interrupted", "Upscale", "upscale_image", "upscale_tiled"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sr_runner.inference import tiling

    return getattr(tiling, name)
