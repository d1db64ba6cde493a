"""Super-resolution of images of any size in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sr_runner.errors import RequestError
from sr_runner.inference import OVERLAP, TILE

Upscale = Callable[[Tensor], Tensor]
"""An SR network, or anything that does what one does: 1 x 3 x h x w to 1 x 3 x (h * scale) x (w * scale), in [0, 1]."""


Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.floating[Any]]
"""H x W x 3 RGB: uint8, 0..255, or floats in [0, 1]."""
_LARGEST = 2.0
"""In floats that overshoot [0, 1], as a network's own do; more are 0..255."""

Array = TypeVar("Array", npt.NDArray[np.uint8], Pixels)


class Interrupted(Exception):
    """A stop was requested; what had been done so far is dropped."""


def never() -> bool:
    """A `should_stop` that never stops."""
    return False


@dataclass(frozen=True)
class Window:
    """One tile along one axis, in LR pixels: the network sees `start..stop`, and `first..last` of it is kept."""

    start: int
    stop: int
    first: int
    last: int


def upscale_image(
    upscale: Upscale,
    lr: Array,
    *,
    scale: int,
    device: torch.device | str,
    tile: int = TILE,
    overlap: int = OVERLAP,
    grid: int = 1,
    should_stop: Callable[[], bool] = never,
) -> Array:
    """The SR image of `lr`, both uint8 HWC RGB: clipped and rounded, as it is scored and saved. Of floats in [0, 1]
    come float32, clipped.

    The network sees at most (tile + 2 * overlap) pixels squared at a time; an image within that size is done whole.
    Tiles end where the image ends, so that the network pads there as it does for the whole image: the result equals
    that for the whole image wherever `overlap` covers the receptive field. All tiles of an image have one shape, so
    that a compiled network is compiled once. Only one tile of the SR image is held as floats.

    Of a network with windows, `grid` is their size: tiles begin at its multiples, so that each has the windows of the
    whole image, `overlap` is rounded up to the next multiple and `tile` down, and the last tiles may be smaller.

    Raises `Interrupted` between tiles once `should_stop()` is true, `RequestError` where the network's output does not
    fit `scale`.
    """
    batch, is_bytes = to_unit_range(lr, device), lr.dtype == np.uint8
    sr: Any = np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), dtype=np.uint8 if is_bytes else np.float32)
    for rows, columns, part in iterate_tiles(
        upscale, batch, scale=scale, tile=tile, overlap=overlap, grid=grid, should_stop=should_stop
    ):
        sr[rows, columns] = to_bytes(part) if is_bytes else _image(_clipped(part))
    return sr  # type: ignore[no-any-return]


def checked_image(given: Any) -> Pixels:
    """`given` as an array. Raises `RequestError` where that is no RGB image, or has floats beyond [0, 1]."""
    image: Any = np.asarray(given)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        shape = " x ".join(map(str, image.shape)) or "no size"
        raise RequestError(
            f"image of {shape}: expected H x W x 3, RGB, as PIL's Image.convert('RGB') makes it of any image"
        )
    is_float = np.issubdtype(image.dtype, np.floating)
    if image.dtype != np.uint8 and not is_float:
        raise RequestError(f"image of {image.dtype}: expected uint8, 0..255, or floats in [0, 1]")
    if is_float and (largest := float(image.max())) > _LARGEST:
        raise RequestError(f"image of {image.dtype} up to {largest:g}: expected floats in [0, 1], or uint8, 0..255")
    return image  # type: ignore[no-any-return]


def scale_of(upscale: Upscale, device: torch.device | str) -> int:
    """The factor by which `upscale` enlarges, found by trying it. Raises `RequestError`."""
    lr = torch.zeros(1, 3, 32, 48, device=device)
    sr = upscale(lr)
    scale = sr.shape[-1] // lr.shape[-1]
    if sr.shape != (1, 3, lr.shape[-2] * scale, lr.shape[-1] * scale) or scale < 1:
        raise RequestError(
            f"the network made {tuple(sr.shape)} of an LR batch of {tuple(lr.shape)}: it does not enlarge RGB images "
            "by a whole factor"
        )
    return scale


def iterate_tiles(
    upscale: Upscale,
    lr: Tensor,
    *,
    scale: int,
    tile: int,
    overlap: int,
    grid: int = 1,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and columns of the SR image, and the part of it that belongs there, tile by tile, each pixel once."""
    if tile < 1 or overlap < 0:
        raise RequestError(f"tile={tile} with an overlap of {overlap}: a tile has at least 1 pixel, an overlap 0.")
    height, width = lr.shape[-2:]
    whole = tile + 2 * overlap
    if height * width <= whole * whole:
        tile = -(-max(height, width) // grid) * grid
    for row in windows(height, tile, overlap, grid):
        for column in windows(width, tile, overlap, grid):
            if should_stop():
                raise Interrupted
            seen = lr[..., row.start : row.stop, column.start : column.stop]
            sr = upscale(seen)
            _check_size(seen, sr, scale)
            yield (
                slice(row.first * scale, row.last * scale),
                slice(column.first * scale, column.last * scale),
                sr[..., _inside(row, scale), _inside(column, scale)],
            )


def windows(length: int, tile: int, overlap: int, grid: int = 1) -> list[Window]:
    """`length` LR pixels cut into tiles, all seen through windows of one length that lie inside the image.

    Where `grid` is more than 1, windows begin and end at its multiples; those at the end of the image end there.
    """
    if grid > 1:
        # More than one window of context: of so much, what is padded at the image's end may be a reflection.
        coarse = windows(-(-length // grid), max(tile // grid, 1), overlap // grid + 1)
        return [
            Window(each.start * grid, min(each.stop * grid, length), each.first * grid, min(each.last * grid, length))
            for each in coarse
        ]
    seen = min(length, tile + 2 * overlap)
    if seen == length:
        return [Window(0, length, 0, length)]
    count = -(-length // tile)
    edges = [length * i // count for i in range(count + 1)]  # tiles of even size rather than a sliver at the end
    starts = [min(max(first - overlap, 0), length - seen) for first in edges[:-1]]
    return [
        Window(start, start + seen, first, last)
        for start, first, last in zip(starts, edges[:-1], edges[1:], strict=True)
    ]


def to_unit_range(image: Pixels, device: torch.device | str) -> Tensor:
    """An H x W x 3 image, uint8 or floats in [0, 1], as a float 1 x 3 x H x W batch in [0, 1] on `device`, channels
    last in memory."""
    pixels = torch.from_numpy(np.array(image)).to(device)  # a copy: views into a read-only cache cannot be tensors
    batch = pixels.permute(2, 0, 1).unsqueeze(0).float()
    return batch.div_(255) if pixels.dtype == torch.uint8 else batch


def to_bytes(sr: Tensor) -> npt.NDArray[np.uint8]:
    """A 1 x 3 x H x W batch as a uint8 H x W x 3 image: clipped to [0, 1] and rounded. What is not a number is 0."""
    image: npt.NDArray[np.uint8] = _image(_clipped(sr).mul_(255).round_().to(torch.uint8))
    return image


def _clipped(sr: Tensor) -> Tensor:
    return sr.detach().float().nan_to_num(nan=0.0).clamp_(0, 1)


def _image(batch: Tensor) -> Any:
    return batch[0].permute(1, 2, 0).contiguous().cpu().numpy()


def _inside(window: Window, scale: int) -> slice:
    return slice((window.first - window.start) * scale, (window.last - window.start) * scale)


def _check_size(lr: Tensor, sr: Tensor, scale: int) -> None:
    expected = (*lr.shape[:-2], lr.shape[-2] * scale, lr.shape[-1] * scale)
    if sr.shape != expected:
        raise RequestError(
            f"scale={scale}: the network made {tuple(sr.shape)} of an LR batch of {tuple(lr.shape)}, "
            f"not {tuple(expected)}. Its own scale has to be {scale} too."
        )
