"""An SR image of floats put together from its tiles, for tests that compare more closely than bytes can."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sr_runner.inference.tiling import OVERLAP, TILE, Upscale, iterate_tiles, never


def upscale_tiled(
    upscale: Upscale,
    lr: Tensor,
    *,
    scale: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
    grid: int = 1,
    should_stop: Callable[[], bool] = never,
) -> Tensor:
    sr = torch.full((1, 3, lr.shape[-2] * scale, lr.shape[-1] * scale), torch.nan, dtype=torch.float64)
    tiles = iterate_tiles(upscale, lr, scale=scale, tile=tile, overlap=overlap, grid=grid, should_stop=should_stop)
    for rows, columns, part in tiles:
        sr = sr.to(part.dtype)
        assert sr[..., rows, columns].isnan().all()  # each pixel comes once
        sr[..., rows, columns] = part
    return sr
